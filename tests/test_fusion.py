from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nonn.enumeration import count_correct, count_one_by_one, enumerate_subsets
from nonn.errors import BundleError, ShapeError
from nonn.fusion import (
    Head,
    LinearHead,
    LogisticPerSet,
    MaskedHead,
    MeanFill,
    PrecisionHead,
    ReplicaAverage,
    Rescale,
    RidgePerSet,
    ZeroFill,
    gram,
    head_from_arrays,
    softmax,
)
from nonn.fusion.masked import group_shares
from nonn.reliability.subsets import all_masks, members

K, WIDTHS, PARTS = 5, (3, 2, 3, 2), (0, 1, 0, 1)


def features(n: int, seed: int = 0) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, w)) for w in WIDTHS]


def heads() -> dict[str, Head]:
    rng = np.random.default_rng(1)
    all_features = np.concatenate(features(60, seed=2), axis=1)
    targets = all_features @ rng.normal(size=(10, K)) + rng.normal(size=K)
    ridge = RidgePerSet(*gram(all_features, targets), 1e-3, WIDTHS)
    return {
        "zero-fill": ZeroFill(rng.normal(size=(10, K)), rng.normal(size=K), WIDTHS),
        "rescale": Rescale(rng.normal(size=(10, K)), rng.normal(size=K), WIDTHS),
        "mean-fill": MeanFill(rng.normal(size=(10, K)), rng.normal(size=K), WIDTHS, rng.normal(size=10)),
        "replica-average": ReplicaAverage(rng.normal(size=(5, K)), rng.normal(size=K), WIDTHS, PARTS),
        "ridge": ridge,
        "masked": masked(rng),
        "logistic": LogisticPerSet.pack(ridge, {m: solution(m, rng) for m in (15, 3, 6, 8)}),
        "precision": PrecisionHead(ridge, rng.normal(size=10), rng.normal(size=4), 0.7),
    }


def masked(rng: np.random.Generator) -> MaskedHead:
    """A random masked head with 6 hidden units and a mask network of 4."""
    shapes: dict[str, tuple[int, ...]] = {"mean": (10,), "scale": (10,), "weight": (10, 6 + K), "readout": (6, K)}
    shapes |= {"first": (4, 4), "first_bias": (4,), "second": (4, 4), "second_bias": (4,)}
    shapes |= {"film": (4, 2 * (6 + K)), "film_bias": (2 * (6 + K),)}
    arrays: dict[str, NDArray[Any]] = {n: rng.normal(size=shape).astype(np.float16) for n, shape in shapes.items()}
    return MaskedHead({**arrays, "groups": np.array([0, 1, 0, 2])}, WIDTHS)


def solution(mask: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Random W_S and b_S of one subset."""
    return rng.normal(size=(sum(WIDTHS[i] for i in members(mask)), K)), rng.normal(size=K)


@pytest.mark.parametrize("kind", heads())
def test_a_head_survives_storage_with_the_same_logits_for_every_set(kind: str) -> None:
    head, fs = heads()[kind], features(4)
    again = head_from_arrays(head.to_arrays())
    assert type(again) is type(head)
    for mask in all_masks(4)[1:].tolist():
        arrived = {i: fs[i] for i in members(mask)}
        np.testing.assert_array_equal(again.logits(arrived), head.logits(arrived))


def test_a_gram_matrix_is_stored_as_its_triangle_and_a_whole_one_is_still_read() -> None:
    head = heads()["ridge"]
    assert isinstance(head, RidgePerSet)
    stored, side = head.to_arrays(), len(head.gram_matrix)
    assert stored["gram"].shape == (side * (side + 1) // 2,)
    for arrays in (stored, stored | {"gram": head.gram_matrix}):
        again = head_from_arrays(arrays)
        assert isinstance(again, RidgePerSet)
        np.testing.assert_array_equal(again.gram_matrix, head.gram_matrix)


def test_zero_fill_equals_the_full_layer_on_features_with_zeros() -> None:
    head, fs = heads()["zero-fill"], features(6)
    assert isinstance(head, ZeroFill)
    for answered in combinations(range(4), 2):
        filled = np.concatenate([f if i in answered else 0 * f for i, f in enumerate(fs)], axis=1)
        np.testing.assert_allclose(head.logits({i: fs[i] for i in answered}), filled @ head.weight + head.bias)


def test_rescale_scales_what_arrived_by_all_over_answered_and_leaves_the_bias() -> None:
    head, fs = heads()["rescale"], features(6)
    assert isinstance(head, Rescale)
    blocks = np.split(head.weight, np.cumsum(WIDTHS)[:-1])
    for mask in all_masks(4)[1:].tolist():
        answered = members(mask)
        expected = 4 / len(answered) * sum(fs[i] @ blocks[i] for i in answered) + head.bias
        np.testing.assert_allclose(head.logits({i: fs[i] for i in answered}), expected)
    assert head.weights(0)[0].shape == (0, K)


def test_mean_fill_equals_the_full_layer_on_features_with_means() -> None:
    head, fs = heads()["mean-fill"], features(6)
    assert isinstance(head, MeanFill)
    means = np.split(head.mean, np.cumsum(WIDTHS)[:-1])
    for mask in all_masks(4)[1:].tolist():
        answered = members(mask)
        filled = [f if i in answered else np.tile(means[i], (6, 1)) for i, f in enumerate(fs)]
        expected = np.concatenate(filled, axis=1) @ head.weight + head.bias
        np.testing.assert_allclose(head.logits({i: fs[i] for i in answered}), expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_a_stored_logistic_head_gives_the_solution_of_its_set_to_half_precision(scale: float) -> None:
    ridge, rng = heads()["ridge"], np.random.default_rng(9)
    assert isinstance(ridge, RidgePerSet)
    solved = {mask: solution(mask, rng) for mask in (7, 1, 12)}
    head = LogisticPerSet.pack(ridge, {mask: (scale * w, b) for mask, (w, b) in solved.items()})
    for mask, (weight, bias) in solved.items():
        got, got_bias = head.weights(mask)
        largest = scale * np.abs(weight).max()
        np.testing.assert_allclose(got, scale * weight, rtol=2**-11, atol=1e-7 * largest)
        # At the mean of the features nothing is lost but the last bits of the logits.
        mean = ridge.mean[ridge.rows(mask)]
        np.testing.assert_allclose(mean @ got + got_bias, mean @ (scale * weight) + bias, rtol=1e-6)
    assert head.to_arrays()["weights"].nbytes == 2 * K * sum(len(w) for w, _ in solved.values())


def test_a_set_without_a_logistic_solution_answers_with_its_ridge() -> None:
    made, ridge, fs = heads()["logistic"], heads()["ridge"], features(6)
    assert isinstance(made, LogisticPerSet)
    for mask in all_masks(4)[1:].tolist():
        arrived = {i: fs[i] for i in members(mask)}
        assert np.array_equal(made.logits(arrived), ridge.logits(arrived)) == (mask not in made.masks)
    assert isinstance(ridge, RidgePerSet)
    nothing = LogisticPerSet.pack(ridge, {})
    np.testing.assert_array_equal(nothing.logits({1: fs[1]}), ridge.logits({1: fs[1]}))


@pytest.mark.parametrize("kind", heads())
def test_a_temperature_changes_the_confidence_and_neither_logits_nor_answers(kind: str) -> None:
    head, fs = heads()[kind], features(20)
    warm = head.with_temperatures(np.linspace(0.5, 4, 16))
    assert head.temperature(5) == 1.0
    assert warm.temperature(15) == 4.0
    for mask in all_masks(4)[1:].tolist():
        arrived = {i: fs[i] for i in members(mask)}
        logits = head.logits(arrived)
        np.testing.assert_array_equal(warm.logits(arrived), logits)
        np.testing.assert_allclose(head.probabilities(logits, mask), softmax(logits))
        calibrated = warm.probabilities(logits, mask)
        np.testing.assert_allclose(calibrated, softmax(logits / warm.temperature(mask)))
        np.testing.assert_array_equal(calibrated.argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_array_equal(
        enumerate_subsets(warm, fs, np.zeros(20, np.int64)).correct,
        enumerate_subsets(head, fs, np.zeros(20, np.int64)).correct,
    )


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6, unique=True), st.floats(0.1, 10), st.floats(1.01, 10))
def test_a_higher_temperature_never_makes_an_answer_more_confident(
    logits: list[float], temperature: float, factor: float
) -> None:
    head = heads()["zero-fill"]
    cold, warm = (head.with_temperatures(np.full(16, t)) for t in (temperature, temperature * factor))
    confidence = [h.probabilities(np.array([logits]), 1).max() for h in (cold, warm)]
    assert confidence[1] <= confidence[0] + 1e-12


def test_temperatures_survive_storage_and_are_absent_where_none_were_fitted() -> None:
    head = heads()["ridge"]
    assert "temperatures" not in head.to_arrays()
    values = np.random.default_rng(3).uniform(0.5, 2, 16)
    again = head_from_arrays(head.with_temperatures(values).to_arrays())
    assert [again.temperature(mask) for mask in range(16)] == values.tolist()
    assert again.with_temperatures(None).temperature(3) == 1.0


def test_replica_average_averages_over_those_that_arrived() -> None:
    head, fs = heads()["replica-average"], features(6)
    assert isinstance(head, ReplicaAverage)
    first, second = head.weight[:3], head.weight[3:]
    both = (fs[0] + fs[2]) / 2 @ first + fs[3] @ second + head.bias
    np.testing.assert_allclose(head.logits({0: fs[0], 2: fs[2], 3: fs[3]}), both)
    np.testing.assert_allclose(head.logits({2: fs[2]}), fs[2] @ first + head.bias)


def test_fusion_is_the_sum_of_what_each_device_adds() -> None:
    head, fs = heads()["zero-fill"], features(6)
    assert isinstance(head, LinearHead)
    alone = [head.logits({i: f}) - head.weights(0)[1] for i, f in enumerate(fs)]
    np.testing.assert_allclose(head.logits(dict(enumerate(fs))), sum(alone) + head.weights(0)[1])


@pytest.mark.parametrize("answered", [(0,), (1, 3), (0, 1, 2, 3)])
def test_ridge_of_a_set_is_the_regression_on_that_sets_features_alone(answered: tuple[int, ...]) -> None:
    fs = features(200, seed=3)
    x, y = np.concatenate(fs, axis=1), np.random.default_rng(4).normal(size=(200, K))
    head = RidgePerSet(*gram(x, y), 1e-9, WIDTHS)
    part = np.concatenate([fs[i] for i in answered] + [np.ones((200, 1))], axis=1)
    expected = part @ np.linalg.lstsq(part, y, rcond=None)[0]
    np.testing.assert_allclose(head.logits({i: fs[i] for i in answered}), expected, atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_a_subset_solved_from_its_absent_devices_equals_the_direct_solution(ridge: float) -> None:
    fs = features(200, seed=3)
    x, y = np.concatenate(fs, axis=1), np.random.default_rng(4).normal(size=(200, K))
    x[:, 5] = x[:, 0] + 1e-4 * x[:, 5]  # nearly collinear
    head = RidgePerSet(*gram(x, y), ridge, WIDTHS)
    system, target, mean, target_mean = head.normal_equations()
    for mask in all_masks(4)[1:].tolist():
        rows = head.rows(mask)
        expected = np.linalg.solve(system[np.ix_(rows, rows)], target[rows])
        weight, bias = head.weights(mask)
        np.testing.assert_allclose(weight, expected, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(bias, target_mean - mean[rows] @ expected, rtol=1e-6, atol=1e-8)


def test_an_ill_conditioned_ridge_is_solved_directly() -> None:
    x = np.concatenate(features(200, seed=3), axis=1)
    x[:, 1:] = x[:, :1]  # every feature is the same, and the ridge is next to nothing
    y = np.random.default_rng(4).normal(size=(200, K))
    head = RidgePerSet(*gram(x, y), 1e-12, WIDTHS)
    assert not head.is_well_conditioned
    system, target = head.normal_equations()[:2]
    rows = head.rows(7)
    np.testing.assert_array_equal(head.weights(7)[0], np.linalg.solve(system[np.ix_(rows, rows)], target[rows]))


def test_ridge_is_exact_where_the_teacher_is_linear_in_the_features() -> None:
    fs = features(100, seed=5)
    x = np.concatenate(fs, axis=1)
    y = x @ np.random.default_rng(6).normal(size=(10, K)) + 3
    head = RidgePerSet(*gram(x, y), 1e-9, WIDTHS)
    np.testing.assert_allclose(head.logits(dict(enumerate(fs))), y, atol=1e-6)


def test_gram_sums_of_batches_add_up() -> None:
    x, y = np.concatenate(features(50), axis=1), np.ones((50, K))
    whole, halves = gram(x, y), [gram(x[:20], y[:20]), gram(x[20:], y[20:])]
    np.testing.assert_allclose(whole[0], halves[0][0] + halves[1][0])
    np.testing.assert_allclose(whole[1], halves[0][1] + halves[1][1])


def test_a_stronger_ridge_shrinks_towards_the_mean_of_the_teacher() -> None:
    head = heads()["ridge"]
    assert isinstance(head, RidgePerSet)
    norms = [np.linalg.norm(head.with_ridge(r).weights(15)[0]) for r in (1e-3, 1.0, 1e6)]
    assert norms[0] > norms[1] > norms[2]
    assert norms[2] < 1e-3


def test_ridge_answers_with_the_mean_when_every_feature_is_dead() -> None:
    y = np.random.default_rng(7).normal(size=(20, K))
    head = RidgePerSet(*gram(np.zeros((20, 10)), y), 1e-3, WIDTHS)
    np.testing.assert_allclose(head.logits({0: np.zeros((2, 3))}), np.tile(y.mean(axis=0), (2, 1)))


def test_a_batch_and_its_samples_one_by_one_fuse_alike() -> None:
    fs = features(30)
    for head in heads().values():
        batch = head.logits({i: fs[i] for i in (0, 3)})
        singles = [head.logits({i: fs[i][j : j + 1] for i in (0, 3)}) for j in range(30)]
        np.testing.assert_allclose(np.concatenate(singles), batch, rtol=1e-12, atol=1e-12)


def test_enumeration_counts_what_fusing_each_set_gives() -> None:
    fs, labels = features(40), np.random.default_rng(8).integers(0, K, 40)
    for head in heads().values():
        table = enumerate_subsets(head, fs, labels)
        assert table.samples == 40
        assert table.correct[0] == 0
        for mask in (1, 6, 15):
            predicted = head.logits({i: fs[i] for i in members(mask)}).argmax(axis=1)
            assert table.correct[mask] == (predicted == labels).sum()


def test_a_masked_head_is_the_network_of_its_formula() -> None:
    head, fs = heads()["masked"], features(6)
    assert isinstance(head, MaskedHead)
    a = {name: array.astype(np.float64) for name, array in head._arrays().items()}
    for mask in all_masks(4)[1:].tolist():
        answered = np.array([mask >> i & 1 for i in range(4)])
        x = (np.concatenate(fs, axis=1) - a["mean"]) * a["scale"] * np.repeat(answered, WIDTHS)
        if answered[0] + answered[2] == 2:  # both of a group count half
            x[:, [0, 1, 2, 5, 6, 7]] /= 2
        inner = np.maximum((2 * answered - 1) @ a["first"] + a["first_bias"], 0) @ a["second"] + a["second_bias"]
        scale, shift = np.split(np.maximum(inner, 0) @ a["film"] + a["film_bias"], 2)
        u = scale * (x @ a["weight"]) + shift
        expected = u[:, 6:] + np.maximum(u[:, :6], 0) @ a["readout"]
        np.testing.assert_allclose(head.logits({i: fs[i] for i in members(mask)}), expected, atol=1e-9)


def test_devices_of_a_group_share_equally_for_masks_of_bits_and_of_booleans() -> None:
    groups, answered = np.array([0, 1, 0, 0]), np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0]])
    expected = np.array([[1 / 3, 1, 1 / 3, 1 / 3], [1 / 2, 0, 1 / 2, 1 / 2], [0, 1, 0, 0]])
    np.testing.assert_allclose(group_shares(groups, answered), expected)
    np.testing.assert_allclose(group_shares(groups, answered.astype(bool)), expected)


def test_a_masked_head_needs_no_solution_and_every_subset_is_counted_as_it_answers() -> None:
    head, fs = heads()["masked"], features(1500)
    assert all(head.is_solved(mask) for mask in range(16))
    labels = np.random.default_rng(8).integers(0, K, 1500)
    np.testing.assert_array_equal(count_correct(head, fs, labels), count_one_by_one(head, fs, labels))
    by_class = count_correct(head, fs, labels, per_class=True)
    np.testing.assert_array_equal(by_class, count_one_by_one(head, fs, labels, per_class=True))


def test_arrays_of_a_masked_head_that_do_not_fit_are_refused_by_name() -> None:
    stored = heads()["masked"].to_arrays()
    with pytest.raises(ShapeError, match=r"masked head: weight \[9, 11\], expected finite \[10, 11\]"):
        head_from_arrays(stored | {"weight": stored["weight"][1:]})
    with pytest.raises(ShapeError, match="masked head: scale"):
        head_from_arrays(stored | {"scale": np.full(10, np.nan)})
    with pytest.raises(BundleError, match="lacks the array 'film'"):
        head_from_arrays({name: array for name, array in stored.items() if name != "film"})


def test_a_precision_head_weighs_what_each_device_adds_by_its_predicted_variance() -> None:
    head, fs = heads()["precision"], features(6)
    assert isinstance(head, PrecisionHead)
    ridge, rows = head.ridge, [head.rows(1 << i) for i in range(4)]
    logs = [head.biases[i] + (fs[i] - ridge.mean[rows[i]]) @ head.directions[rows[i]] for i in range(4)]
    for mask in all_masks(4)[1:].tolist():
        devices, (weight, bias) = members(mask), ridge.weights(mask)
        precision = {i: np.exp(-0.7 * logs[i]) for i in devices}
        expected, start = bias + ridge.mean[ridge.rows(mask)] @ weight, 0
        for i in devices:
            gain = len(devices) * precision[i] / sum(precision.values())
            expected = expected + gain[:, None] * ((fs[i] - ridge.mean[rows[i]]) @ weight[start : start + WIDTHS[i]])
            start += WIDTHS[i]
        arrived = {i: fs[i] for i in devices}
        np.testing.assert_allclose(head.logits(arrived), expected, atol=1e-9)
        np.testing.assert_allclose(head.with_strength(0).logits(arrived), ridge.logits(arrived), atol=1e-9)
    assert head.is_solved(15)
    assert sorted(head.solved()) == sorted(ridge.solved())


def test_arrays_of_a_precision_head_that_do_not_fit_are_refused_by_name() -> None:
    stored = heads()["precision"].to_arrays()
    with pytest.raises(ShapeError, match=r"precision head: directions \[9\], expected finite \[10\]"):
        head_from_arrays(stored | {"directions": stored["directions"][1:]})
    with pytest.raises(ShapeError, match="precision head: strength"):
        head_from_arrays(stored | {"strength": np.array(np.inf)})


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6))
def test_softmax_is_a_distribution_and_ignores_a_shift(logits: list[float]) -> None:
    p = softmax(np.array([logits]))
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    np.testing.assert_allclose(softmax(np.array([logits]) + 7), p, atol=1e-9)


@pytest.mark.parametrize(
    ("arrived", "text"),
    [
        ({}, "no device answered"),
        ({0: (3, 3), 1: (3, 3)}, r"device 1: features of shape \[3, 3\], expected \[3, 2\]"),
        ({0: (3, 3), 1: (2, 2)}, r"device 1: features of shape \[2, 2\]"),
        ({7: (3, 3)}, "only devices 0 to 3"),
    ],
)
def test_features_that_do_not_fit_are_refused_by_device(arrived: dict[int, tuple[int, int]], text: str) -> None:
    with pytest.raises(ShapeError, match=text):
        heads()["ridge"].logits({device: np.zeros(shape) for device, shape in arrived.items()})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ZeroFill(np.zeros((4, K)), np.zeros(K), WIDTHS), "widths"),
        (
            lambda: ReplicaAverage(np.zeros((5, K)), np.zeros(K), (3, 2, 2, 2), PARTS),
            "device 2: width 2, but part 0 has width 3",
        ),
        (lambda: RidgePerSet(np.zeros((4, 4)), np.zeros((11, K)), 1.0, WIDTHS), "Gram matrix"),
        (lambda: MeanFill(np.zeros((10, K)), np.zeros(K), WIDTHS, np.zeros(9)), r"mean of shape \[9\]"),
    ],
    ids=["widths", "replicas", "gram", "mean"],
)
def test_parameters_that_do_not_fit_are_refused_by_name(make: Callable[[], Head], text: str) -> None:
    with pytest.raises(ShapeError, match=text):
        make()


def test_stored_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="Gram matrix of 65 values"):
        head_from_arrays(heads()["ridge"].to_arrays() | {"gram": np.zeros(65)})
    stored = heads()["logistic"].to_arrays()
    with pytest.raises(ShapeError, match="do not fit the 4 stored sets"):
        head_from_arrays(stored | {"weights": stored["weights"][1:]})


def test_temperatures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"temperatures of shape \[4\], expected \[16\]"):
        heads()["ridge"].with_temperatures(np.ones(4))
    with pytest.raises(ShapeError, match="positive"):
        heads()["ridge"].with_temperatures(np.zeros(16))


def test_foreign_fusion_state_is_refused() -> None:
    with pytest.raises(BundleError, match="unknown kind"):
        head_from_arrays({"kind": np.array("median")})
    arrays = heads()["ridge"].to_arrays()
    del arrays["cross"]
    with pytest.raises(BundleError, match="lacks the array 'cross'"):
        head_from_arrays(arrays)
