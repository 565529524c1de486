"""The test of devices against each other: finds liars of every kind, leaves honest devices alone, for every head."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.bundle.features import FeatureCode
from nonn.distill.masked import fit_masked
from nonn.errors import BundleError, ShapeError
from nonn.fusion import (
    Head,
    LogisticPerSet,
    LogitAverage,
    MeanFill,
    ReplicaAverage,
    Rescale,
    RidgePerSet,
    ZeroFill,
    gram,
)
from nonn.fusion.consistency import Consistency
from nonn.fusion.consistency_fit import fit_consistency
from tests.toys import CLASSES, toy_bundle, toy_data

NUM_DEVICES = 8
WIDTH = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(
        tmp_path_factory.mktemp("consistency") / "bundle", num_devices=NUM_DEVICES, tested=True, width=WIDTH
    )


@pytest.fixture(scope="module")
def test(bundle: Bundle) -> Consistency:
    assert bundle.consistency is not None
    return bundle.consistency


@pytest.fixture(scope="module")
def honest(bundle: Bundle) -> Any:
    return dict(enumerate(bundle.features[0]))


def row(features: Any, number: int) -> Any:
    return {i: f[number : number + 1] for i, f in features.items()}


def lying(honest: Any, number: int, liars: Any, seed: int = 0) -> Any:
    """One sample in which some devices send features of a sample of another class, ten times as large."""
    other = (number + 1 + seed) % len(honest[0])
    return row(honest, number) | {i: 10 * honest[i][other : other + 1] for i in liars}


def excluded_by(test: Consistency, honest: Any, liars: Any) -> tuple[float, float]:
    """Share of samples in which all liars, and in which an honest device is excluded."""
    found = [set(test.test(lying(honest, number, liars)).excluded) for number in range(len(honest[0]))]
    return float(np.mean([set(liars) <= f for f in found])), float(np.mean([bool(f - set(liars)) for f in found]))


def test_honest_devices_are_not_excluded_however_many_answer(test: Consistency, honest: Any) -> None:
    for size in range(1, NUM_DEVICES + 1):
        devices = list(range(size))
        for number in range(len(honest[0])):
            verdict = test.test({i: honest[i][number : number + 1] for i in devices})
            assert verdict.excluded == ()
            assert not verdict.undecided


def test_at_most_one_honest_device_of_100_000_requests_is_excluded() -> None:
    rng, classes, width = np.random.default_rng(0), 4, 6
    centres = rng.standard_normal((classes, 8), np.float32)
    maps = [rng.standard_normal((8, width), np.float32) / 3 for _ in range(NUM_DEVICES)]

    def sampled(number: int) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
        labels = rng.integers(classes, size=number)
        hidden = centres[labels] + rng.standard_normal((number, 8), np.float32) / 2
        return labels, [np.tanh(hidden @ m + rng.standard_normal((number, width), np.float32) / 3) for m in maps]

    labels, training = sampled(2000)
    sums = gram(np.concatenate(training, axis=1), 8.0 * np.eye(classes)[labels])
    head = RidgePerSet(*sums, ridge=1e-2, widths=[width] * NUM_DEVICES)
    test = fit_consistency(head, training, sampled(1000)[1])
    assert test is not None
    excluded = 0
    for _ in range(10):
        statistics = test.statistics(dict(enumerate(sampled(30_000)[1])))
        excluded += int(np.count_nonzero(statistics.max(axis=0) > test.threshold(NUM_DEVICES)))
    assert excluded == 0  # in 300,000 requests: a rate below 1e-5, with 95 % confidence


@pytest.mark.parametrize("liars", [(0,), (7,), (0, 1), (3, 6), (1, 4, 7)])
def test_liars_are_excluded_and_never_hide_each_other(test: Consistency, honest: Any, liars: Any) -> None:
    caught, honest_excluded = excluded_by(test, honest, liars)
    assert caught > 0.9
    assert honest_excluded == 0.0


def test_what_is_left_is_what_the_honest_devices_sent(test: Consistency, honest: Any) -> None:
    verdict = test.test(lying(honest, 5, (2, 3)))
    assert sorted(verdict.features) == [0, 1, 4, 5, 6, 7]
    assert all(np.array_equal(f, honest[i][5:6]) for i, f in verdict.features.items())


@pytest.mark.parametrize("size", [1, 2])
def test_two_devices_cannot_tell_which_of_them_lies(test: Consistency, honest: Any, size: int) -> None:
    verdict = test.test({i: lying(honest, 0, (0,))[i] for i in range(size)})
    assert verdict.excluded == ()
    assert verdict.surprise == {}


def test_half_of_the_devices_cannot_be_excluded(test: Consistency, honest: Any) -> None:
    undecided = 0
    for number in range(100):
        four = {i: f for i, f in lying(honest, number, (0,)).items() if i < 4}
        four[1] = np.full((1, WIDTH), 3e38, np.float32)
        verdict = test.test(four)
        undecided += verdict.undecided
        assert len(verdict.excluded) <= 1
        assert not verdict.undecided or sorted(verdict.features) == [0, 1, 2, 3]
    assert undecided


def test_one_lie_in_a_batch_is_found(test: Consistency, honest: Any) -> None:
    batch = {i: f[:64].copy() for i, f in honest.items()}
    assert test.test(batch).excluded == ()
    batch[4][17] = 10 * honest[4][18]
    assert test.test(batch).excluded == (4,)


def test_the_threshold_grows_with_the_batch_and_as_the_rate_falls(test: Consistency) -> None:
    usual = test.threshold(8, 1, 1e-9)
    assert test.threshold(8, 100, 1e-9) > usual
    assert test.threshold(8, 1, 1e-11) == pytest.approx(test.threshold(8, 100, 1e-9))
    assert test.threshold(8, 1, 0.5) < usual
    assert test.threshold(8, 1, 0.5) == pytest.approx(1.4 * test.to_arrays()["peak"][8])  # however large the rate


def test_features_beyond_the_widened_range_are_clipped_and_others_are_not_touched(
    test: Consistency, honest: Any
) -> None:
    assert test.clip(honest) is honest
    huge = {**honest, 1: np.full_like(honest[1], 3e38), 2: np.full_like(honest[2], -3e38)}
    clipped = test.clip(huge)
    assert np.abs(clipped[1]).max() < 10 * np.abs(honest[1]).max()
    assert np.abs(clipped[2]).max() < 10 * np.abs(honest[2]).max()
    assert np.array_equal(clipped[0], honest[0])


def test_clipping_is_what_two_devices_have(test: Consistency, honest: Any) -> None:
    pair = {0: honest[0], 1: np.full_like(honest[1], 3e38)}
    assert np.abs(test.test(pair).features[1]).max() < 1e6


def test_surprise_of_honest_devices_is_no_smaller_than_chance(test: Consistency, honest: Any) -> None:
    """The surprise is uniform or larger: at most a share q of the samples has a surprise of q or less."""
    statistics = test.statistics(honest)
    q = np.array([[test.surprise(float(s), len(honest)) for s in values] for values in statistics])
    for level in (0.1, 0.01, 0.001):
        assert (q <= level).mean() <= 1.5 * level + 1e-3


def test_the_surprise_of_a_batch_counts_its_samples(test: Consistency, honest: Any) -> None:
    batch = {i: features[:64] for i, features in honest.items()}
    worst = test.statistics(batch).max(axis=1)
    assert test.surprise(float(worst.max()), 8) < test.surprise(float(worst.max()), 8, 64)
    assert test.test(batch).surprise == {i: test.surprise(float(x), 8, 64) for i, x in enumerate(worst)}


def test_of_one_rate_follows_the_other(test: Consistency) -> None:
    """The threshold is where the surprise is the rate, shared by devices and samples, if the tail decides."""
    threshold = test.threshold(8, 1, 1e-12)
    assert test.surprise(threshold, 8) * 8 == pytest.approx(1e-12)


def test_it_survives_its_file(bundle: Bundle, test: Consistency, honest: Any) -> None:
    again = Consistency(test.to_arrays(), test.widths)
    for number in range(20):
        lies = lying(honest, number, (1,))
        assert again.test(lies).excluded == test.test(lies).excluded
    assert bundle.consistency is bundle.consistency


@pytest.mark.parametrize("change", ["missing", "short", "infinite"])
def test_a_damaged_file_is_an_error(test: Consistency, change: str) -> None:
    arrays = test.to_arrays()
    if change == "missing":
        del arrays["tail"]
    elif change == "short":
        arrays["slope"] = arrays["slope"][1:]
    else:
        arrays["level"] = arrays["level"] * np.inf
    with pytest.raises(BundleError, match=r"consistency\.npz"):
        Consistency(arrays, test.widths)


def test_features_of_another_width_are_refused(test: Consistency, honest: Any) -> None:
    with pytest.raises(ShapeError, match="device 3"):
        test.test(row(honest, 0) | {3: np.zeros((1, WIDTH + 1), np.float32)})


def test_too_few_devices_classes_or_samples_have_no_test(bundle: Bundle, honest: Any) -> None:
    features = list(honest.values())
    assert fit_consistency(bundle.head, features, [f[:20] for f in features]) is None
    pair = RidgePerSet(np.eye(2 * WIDTH + 1), np.ones((2 * WIDTH + 1, CLASSES)), 1e-3, [WIDTH] * 2)
    assert fit_consistency(pair, features[:2], features[:2]) is None


def heads(bundle: Bundle) -> dict[str, Head]:
    ridge = bundle.head
    assert isinstance(ridge, RidgePerSet)
    weight, bias = ridge.weights((1 << NUM_DEVICES) - 1)
    widths = ridge.widths
    masks = [255, 127, 63]
    return {
        "ridge": ridge,
        "logistic": LogisticPerSet.pack(ridge, {m: ridge.weights(m) for m in masks}),
        "zero-fill": ZeroFill(weight, bias, widths),
        "rescale": Rescale(weight, bias, widths),
        "mean-fill": MeanFill(weight, bias, widths, ridge.mean),
        "logit-average": LogitAverage(weight, np.stack([bias] * NUM_DEVICES), widths),
        "masked": fit_masked(
            ZeroFill(weight, bias, widths),
            np.concatenate(bundle.features[0], axis=1),
            bundle.features[1],
            None,
            hidden=16,
            updates=20,
        ),
        "replica-average": ReplicaAverage(weight, bias, widths, list(range(NUM_DEVICES))),
    }


@pytest.mark.parametrize(
    "kind", ["ridge", "logistic", "zero-fill", "rescale", "mean-fill", "logit-average", "replica-average", "masked"]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_it_works_for_every_head_and_every_code_of_features(bundle: Bundle, honest: Any, kind: str, dtype: str) -> None:
    codes = [FeatureCode.fit(dtype, f) for f in honest.values()]
    sent: list[NDArray[Any]] = [code.roundtrip(f) for code, f in zip(codes, honest.values(), strict=True)]
    test = fit_consistency(heads(bundle)[kind], sent, sent)
    assert test is not None
    features = dict(enumerate(sent))
    for number in range(0, len(sent[0]), 4):
        assert test.test(row(features, number)).excluded == ()
    # A code of 8 bits cannot send more than its range: the liar sends the mirror image.
    flipped = [f.max(axis=0) + f.min(axis=0) - f for f in sent]
    caught = 0
    for number in range(100):
        liars = {i: flipped[i][number : number + 1] for i in (1, 6)}
        found = set(test.test(row(features, number) | liars).excluded)
        assert found <= {1, 6}
        caught += len(found)
    assert caught > 100


def test_devices_of_different_width_are_tested(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    inputs = toy_data(1000, seed=5)[0].reshape(1000, -1).astype(np.float32)
    widths = [2, 5, 3, 7, 4]
    features = [np.maximum(inputs @ rng.normal(0, 0.01, (64, w)), 0).astype(np.float32) for w in widths]
    together = np.concatenate(features, axis=1, dtype=np.float64)
    phi = np.concatenate([together, np.ones((1000, 1))], axis=1)
    labels = toy_data(1000, seed=5)[1]
    head = RidgePerSet(phi.T @ phi, phi.T @ (8.0 * np.eye(CLASSES)[labels]), 1e-4, widths)
    test = fit_consistency(head, features, [f[:500] for f in features])
    assert test is not None
    caught = 0
    for number in range(500, 600):
        one = {i: f[number : number + 1] for i, f in enumerate(features)}
        assert test.test(one).excluded == ()
        found = test.test(one | {3: 10 * features[3][number - 1 : number]}).excluded
        assert set(found) <= {3}
        caught += len(found)
    assert caught > 80


def test_every_pair_of_liars_is_found(test: Consistency, honest: Any) -> None:
    for liars in combinations(range(NUM_DEVICES), 2):
        found = [set(test.test(lying(honest, number, liars, seed=3)).excluded) for number in range(0, 200, 20)]
        assert all(f <= set(liars) for f in found)
        assert np.mean([len(f) for f in found]) > 1.5
