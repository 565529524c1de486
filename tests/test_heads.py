"""Heads fitted to real (untrained) students: each against what it should be by definition, and logistic regression."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from nonn.config import DataConfig, FusionConfig, load_experiment
from nonn.data import Split
from nonn.data.augment import Augment
from nonn.distill import FusionLayer, Students
from nonn.distill.fitting import Fitting, Passes
from nonn.distill.heads import KINDS, HeadFitter, choose_ridge, held_out_accuracy
from nonn.distill.logistic import fit_logistic, refine, stored_levels
from nonn.distill.masked import MaskedNetwork, fit_masked
from nonn.enumeration import enumerate_subsets
from nonn.errors import ConfigError, ShapeError
from nonn.fusion import (
    Head,
    LinearHead,
    LogisticPerSet,
    LogitAverage,
    MeanFill,
    ReplicaAverage,
    Rescale,
    RidgePerSet,
    ZeroFill,
    gram,
    softmax,
)
from nonn.reliability.subsets import members, membership
from nonn.students import Student
from nonn.teacher import Normalise, Teacher
from tests.calibration import calibration
from tests.toys import SHAPE, toy_data

CONFIG = FusionConfig(passes=2, hidden=32, updates=200)
Array = NDArray[np.float64]


def normalise() -> Normalise:
    return Normalise([127.0], [70.0], 2)


class Prototypes(torch.nn.Module):
    """Logits fall with the distance to each class's prototype: the best that the toy data allow."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = torch.nn.Flatten()
        self.prototypes: torch.Tensor
        raw = np.random.default_rng(0).integers(0, 256, (10, *SHAPE))  # those of ``toy_data``
        self.register_buffer("prototypes", torch.from_numpy((raw.reshape(10, -1) - 127) / 70).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distances: torch.Tensor = torch.cdist(self.stage(x), self.prototypes)
        return -distances


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(Prototypes(), "stage", normalise()).eval()


def make_students(kind: str = "zero-fill", parts: tuple[int, ...] = (0, 1, 2, 3)) -> Students:
    torch.manual_seed(1)
    students = [Student("wrn-10-1", SHAPE, 6, normalise()) for _ in parts]
    return Students(students, FusionLayer(kind, [6] * len(parts), parts, 10)).eval()


def split(n: int, seed: int) -> Split:
    return Split(*toy_data(n, seed))


def varied(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return Augment(DataConfig(crop=1, noise=0.1), np.array([127.0]), np.array([70.0]))(x, generator)


def fitter(config: FusionConfig, train: Split | None = None, held_out: Split | None = None) -> HeadFitter:
    return HeadFitter(config, train or split(600, 1), held_out or split(200, 2), seed=0, augment=varied)


@pytest.fixture(scope="module")
def fitted(teacher: Teacher) -> dict[str, Head]:
    return fitter(CONFIG).fit_all(teacher, make_students())


def recorded(students: Students, data: Split) -> list[NDArray[np.float32]]:
    with torch.no_grad():
        return [f.numpy() for f in students.features(torch.from_numpy(data.inputs))]


# ---- trained through -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "parts"), [("zero-fill", (0, 1, 2)), ("rescale", (0, 1, 2)), ("replica-average", (0, 1, 0))]
)
def test_the_torch_fusion_and_its_numpy_head_give_the_same_logits_for_every_set(
    kind: str, parts: tuple[int, ...]
) -> None:
    layer = FusionLayer(kind, [4, 5, 4], parts, 10)
    torch.nn.init.normal_(layer.linear.bias)
    features = [torch.randn(8, w) for w in (4, 5, 4)]
    head = layer.head()
    assert isinstance(head, LinearHead)
    assert head.kind == kind
    # Sample b is answered by set b: every sample has a set of its own, the empty one too.
    answered = torch.from_numpy(membership(3))
    logits = layer(features, answered).detach().numpy()
    np.testing.assert_allclose(logits[0], head.weights(0)[1], atol=1e-6)
    for mask in range(1, 8):
        alone = head.logits({i: features[i][mask : mask + 1].numpy() for i in members(mask)})
        np.testing.assert_allclose(logits[mask : mask + 1], alone, atol=1e-5)


def test_rescaling_keeps_the_size_of_the_additive_part_and_its_gradient() -> None:
    layer = FusionLayer("rescale", [3, 3], (0, 1), 4)
    f = torch.ones(1, 3, requires_grad=True)
    both = layer([f, f], torch.tensor([[True, True]]))
    layer.linear.weight.data[:, 3:] = layer.linear.weight.data[:, :3]
    one, both = (layer([f, f], torch.tensor([[True, second]])) for second in (False, True))
    torch.testing.assert_close(one, both)
    one.sum().backward()
    assert f.grad is not None
    assert f.grad.abs().sum() > 0


def test_what_is_not_linear_cannot_be_trained_through() -> None:
    with pytest.raises(
        ShapeError, match="'logistic' cannot be trained through; choose one of: zero-fill, rescale, replica"
    ):
        FusionLayer("logistic", [4], (0,), 10)


# ---- all heads of the same students ----------------------------------------------------------------------------


def test_every_kind_is_fitted_and_asked_for_by_name(fitted: dict[str, Head], teacher: Teacher) -> None:
    assert tuple(fitted) == KINDS
    assert [fitted[k].kind for k in KINDS] == [
        "zero-fill",
        "zero-fill",
        "rescale",
        "mean-fill",
        "ridge",
        "logistic",
        "masked",
    ]
    features = recorded(make_students(), split(20, 4))
    for kind in ("rescale", "mean-fill", "ridge", "masked"):
        alone = fitter(dataclasses.replace(CONFIG, head=kind)).fit(teacher, make_students())
        for mask in (1, 6, 15):
            arrived = {i: features[i] for i in members(mask)}
            # Threads may add up the products of a second fit in another order.
            np.testing.assert_allclose(alone.logits(arrived), fitted[kind].logits(arrived), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("kind", [*KINDS, "best"])
def test_the_experiment_file_takes_every_kind(kind: str) -> None:
    assert load_experiment(None, [f"fusion.head={kind}"]).fusion.head == kind


@pytest.mark.parametrize(
    "bad",
    [
        "head=median",
        "train=ridge",
        "temperature=warm",
        "steps=[]",
        "steps=[0]",
        "samples=0",
        "stored_mb=-1",
        "hidden=0",
        "updates=0",
    ],
)
def test_impossible_fusions_are_refused_by_key(bad: str) -> None:
    with pytest.raises(ConfigError, match=rf"fusion.{bad.partition('=')[0]}(\[0\])? = "):
        load_experiment(None, [f"fusion.{bad}"])


@pytest.mark.parametrize(("kind", "parts"), [("rescale", (0, 1, 2, 3)), ("replica-average", (0, 1, 0, 1))])
def test_with_every_device_the_fills_are_the_fusion_students_were_trained_through(
    kind: str, parts: tuple[int, ...], teacher: Teacher
) -> None:
    students, data = make_students(kind, parts), split(50, 2)
    kinds = ("trained", "zero-fill", "rescale", "mean-fill")
    made = fitter(CONFIG, train=split(300, 1), held_out=data).fit_all(teacher, students, kinds)
    assert made["trained"].kind == kind
    everyone = dict(enumerate(recorded(students, data)))
    for head in made.values():
        np.testing.assert_allclose(head.logits(everyone), made["trained"].logits(everyone), atol=1e-9)


def test_the_sums_are_those_of_every_augmented_pass_and_the_mean_is_theirs(
    fitted: dict[str, Head], teacher: Teacher
) -> None:
    students, data = make_students(), split(600, 1)

    def passes(kept: int) -> Passes:
        return Fitting(fitter(dataclasses.replace(CONFIG, samples=kept)), teacher, students).passes

    made = passes(10_000)
    assert made.features.shape == (1200, 24)
    assert made.gram_matrix[-1, -1] == 1200
    np.testing.assert_allclose(made.gram_matrix, gram(made.features, np.zeros((1200, 1)))[0])
    np.testing.assert_array_equal(made.labels, np.tile(data.labels, 2))
    assert not np.allclose(made.features[:600], made.features[600:])  # another pass varies otherwise
    head = fitted["mean-fill"]
    assert isinstance(head, MeanFill)
    np.testing.assert_allclose(head.mean, made.features.mean(axis=0), rtol=1e-5)
    assert len(passes(700).labels) == 600 + 128
    assert len(Fitting(fitter(CONFIG), teacher, students, keeps_samples=False).passes.labels) == 0


def test_passes_are_balanced_and_mix_features_if_asked(teacher: Teacher) -> None:
    whole = split(600, 1)
    rare = np.flatnonzero((whole.labels < 5) | (np.arange(600) % 20 == 0))  # five classes with a twentieth
    students = make_students()

    def passes(**options: Any) -> Passes:
        config = dataclasses.replace(CONFIG, samples=10_000, **options)
        return Fitting(dataclasses.replace(fitter(config), train=whole.take(rare)), teacher, students).passes

    plain, balanced, mixed = passes(), passes(balanced=True), passes(balanced=True, head_to_tail=0.3)
    assert (plain.labels >= 5).mean() < 0.1
    assert (balanced.labels >= 5).mean() > 0.35
    np.testing.assert_array_equal(balanced.labels, mixed.labels)
    assert set(balanced.labels[(balanced.features != mixed.features).any(axis=1)]) <= {5, 6, 7, 8, 9}
    assert (balanced.features != mixed.features).any()


def test_regressions_beat_the_fills_on_images_they_did_not_see(fitted: dict[str, Head]) -> None:
    data = split(300, 3)
    features = recorded(make_students(), data)
    score = {kind: held_out_accuracy(head, features, data.labels, 0) for kind, head in fitted.items()}
    fills = max(score[kind] for kind in ("trained", "zero-fill", "rescale", "mean-fill"))
    assert min(score["ridge"], score["logistic"], score["masked"]) > fills + 0.2


def test_best_is_the_head_that_is_most_often_right_on_the_held_out_split(
    fitted: dict[str, Head], teacher: Teacher
) -> None:
    data, students = split(200, 2), make_students()
    features = recorded(students, data)
    score = {kind: held_out_accuracy(head, features, data.labels, 0) for kind, head in fitted.items()}
    made = fitter(dataclasses.replace(CONFIG, head="best"), held_out=data).fit(teacher, students)
    assert held_out_accuracy(made, features, data.labels, 0) == max(score.values())
    assert score[made.kind] == max(score.values()) > min(score.values())


def test_held_out_accuracy_weighs_every_number_of_failures_alike(fitted: dict[str, Head]) -> None:
    data = split(100, 4)
    features = recorded(make_students(), data)
    table = enumerate_subsets(fitted["ridge"], features, data.labels)
    rows = [row.mean for row in table.by_failures()]
    assert held_out_accuracy(fitted["ridge"], features, data.labels, 0) == pytest.approx(np.mean(rows))


def test_temperatures_are_fitted_on_the_held_out_split_when_asked_for(teacher: Teacher) -> None:
    data, students = split(1000, 2), make_students()
    config = dataclasses.replace(CONFIG, temperature="auto")
    made = fitter(config, train=split(300, 1), held_out=data).fit_all(teacher, students, ("trained", "ridge"))
    features = recorded(students, data)
    assert made["ridge"].temperatures is not None
    assert len(set(made["ridge"].temperatures.tolist())) == 16
    for head in made.values():
        cold = head.with_temperatures(None)
        for mask in range(1, 16):
            warm_nll = calibration(head, features, data.labels, mask).nll
            assert warm_nll <= calibration(cold, features, data.labels, mask).nll + 1e-9


def test_equal_candidates_of_lambda_are_decided_for_the_largest() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(300, 4)), rng.integers(0, 2, 300)
    head = RidgePerSet(*gram(x, np.eye(2)[labels]), 1.0, (2, 2))
    features = [np.ones((10, 2), np.float32), np.ones((10, 2), np.float32)]
    assert choose_ridge(head, features, np.zeros(10, np.int64), [1e-9, 1e-8], seed=0) == 1e-8


# ---- logistic regression ---------------------------------------------------------------------------------------


def task(samples: int, seed: int, scale: float = 1.0) -> tuple[list[NDArray[np.float32]], NDArray[np.int64], Array]:
    """Features of three devices that see three classes through noise, labels, and a teacher's logits."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, samples)
    clean = np.eye(3)[labels] * 2
    features = [(scale * (clean + rng.normal(0, s, clean.shape)) + 5).astype(np.float32) for s in (0.8, 1.2, 1.6)]
    # The teacher is unsure about class 2: squared error to its logits is not what decides.
    return features, labels.astype(np.int64), np.eye(3)[labels] * np.array([8.0, 8.0, 1.0])


def ridge_of(features: list[NDArray[np.float32]], targets: Array) -> RidgePerSet:
    return RidgePerSet(*gram(np.concatenate(features, axis=1), targets), 1e-3, [3, 3, 3])


def mean_nll(head: Head, mask: int, features: list[NDArray[np.float32]], labels: NDArray[np.int64]) -> float:
    p = softmax(head.logits({i: features[i] for i in members(mask)}))
    return float(-np.log(p[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("steps", [(1,), (3, 10), (200,)])
def test_a_logistic_head_is_never_worse_in_training_than_the_ridge_it_started_from(
    steps: tuple[int, ...], scale: float
) -> None:
    features, labels, targets = task(400, 0, scale)
    held_out, held_out_labels, _ = task(400, 1, scale)
    ridge = ridge_of(features, targets)
    head = fit_logistic(
        ridge,
        np.concatenate(features, axis=1),
        labels,
        held_out,
        held_out_labels,
        steps=steps,
        limit_bytes=10**6,
    )
    assert len(head.masks) > 3
    for mask in range(1, 8):
        before, after = (mean_nll(h, mask, features, labels) for h in (ridge, head))
        assert after < before if mask in head.masks else after == before
    gain = held_out_accuracy(head, held_out, held_out_labels, 0) - held_out_accuracy(
        ridge, held_out, held_out_labels, 0
    )
    assert gain > 0.02


def test_many_steps_reach_the_optimum_that_scipy_finds() -> None:
    features, labels, _ = task(300, 2)
    x = np.concatenate([features[1] - 5, np.ones((300, 1))], axis=1)

    def loss(flat: Array) -> tuple[float, Array]:
        p = softmax(x @ flat.reshape(4, 3))
        gradient = x.T @ (p - np.eye(3)[labels]) / 300
        return float(-np.log(p[np.arange(300), labels]).mean()), gradient.ravel()

    lowest = minimize(loss, np.zeros(12), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-13}).fun
    start = (np.zeros((3, 3)), np.zeros(3))
    ((weight, bias),) = refine(torch.from_numpy(x[:, :3].astype(np.float32)), torch.from_numpy(labels), start, [300])
    assert loss(np.concatenate([weight, bias[None]]).ravel())[0] == pytest.approx(lowest, rel=1e-4)


def test_steps_are_taken_from_where_the_last_candidate_stopped() -> None:
    features, labels, _ = task(300, 3)
    x = torch.from_numpy(np.concatenate(features, axis=1) - 5)
    start = (np.zeros((9, 3)), np.ones(3))
    stages = refine(x, torch.from_numpy(labels), start, [0, 2, 6])

    def loss(solution: tuple[Array, Array]) -> float:
        p = softmax(x.numpy() @ solution[0] + solution[1])
        return float(-np.log(p[np.arange(300), labels]).mean())

    np.testing.assert_array_equal(stages[0][1], start[1])
    assert loss(stages[0]) > loss(stages[1]) > loss(stages[2])


def test_a_level_that_no_step_helps_on_the_held_out_split_keeps_its_ridge() -> None:
    features, labels, targets = task(400, 4)
    held_out, held_out_labels, _ = task(300, 5)
    ridge = ridge_of(features, targets)
    answers = ridge.logits(dict(enumerate(held_out))).argmax(axis=1)  # held-out labels with which the ridge is right
    head = fit_logistic(
        ridge, np.concatenate(features, axis=1), labels, held_out, answers, steps=[10], limit_bytes=10**6
    )
    assert 7 not in head.masks
    assert not np.array_equal(answers, held_out_labels)


def test_stored_are_whole_levels_from_the_fewest_failures_on_as_far_as_they_fit() -> None:
    head = ZeroFill(np.zeros((12, 5)), np.zeros(5), [4, 4, 4])
    everyone, pairs, singles = 2 * 12 * 5, 2 * 3 * 8 * 5, 2 * 3 * 4 * 5
    assert stored_levels(head, everyone - 1) == []
    assert stored_levels(head, everyone) == [[7]]
    assert stored_levels(head, everyone + pairs - 1) == [[7]]
    assert stored_levels(head, everyone + pairs + singles) == [[7], [3, 5, 6], [1, 2, 4]]
    wide = ZeroFill(np.zeros((16, 2)), np.zeros(2), [1] * 16)
    # The next level would be 4,368 sets more.
    assert [len(level) for level in stored_levels(wide, 10**9)] == [1, 16, 120, 560, 1820]


def test_sets_the_number_of_steps_was_not_chosen_on_take_as_many_steps_as_the_others() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = [(np.eye(3)[labels] + rng.normal(0, 1.5, (200, 3))).astype(np.float32) for _ in range(7)]
    x = np.concatenate(features, axis=1)
    # A teacher that is no help: logistic regression gains at every level.
    ridge = RidgePerSet(*gram(x, rng.normal(size=(200, 3))), 1e-3, [3] * 7)
    head = fit_logistic(ridge, x, labels, features, labels, steps=[4], limit_bytes=10**6)
    assert len(head.masks) == 127
    for mask in (0b1010101, 0b0001011, 0b1100000):
        weight, bias = ridge.weights(mask)
        std, mean = x.std(axis=0)[ridge.rows(mask)], x.mean(axis=0)[ridge.rows(mask)]
        scaled = torch.from_numpy((x[:, ridge.rows(mask)] - mean) / std)
        ((w, b),) = refine(scaled, torch.from_numpy(labels), (weight * std[:, None], bias + mean @ weight), [4])
        got = head.logits({i: features[i] for i in members(mask)})
        np.testing.assert_allclose(got, scaled.numpy() @ w + b, atol=0.02)


def test_what_does_not_fit_is_left_to_the_ridge_and_the_file_stays_below_the_limit() -> None:
    features, labels, targets = task(400, 6)
    held_out, held_out_labels, _ = task(200, 7)
    ridge = ridge_of(features, targets)
    head = fit_logistic(
        ridge,
        np.concatenate(features, axis=1),
        labels,
        held_out,
        held_out_labels,
        steps=[5],
        limit_bytes=2 * 3 * (9 + 3 * 6),
    )
    assert isinstance(head, LogisticPerSet)
    assert set(head.masks.tolist()) <= {7, 3, 5, 6}
    assert len(head.masks)
    assert head.to_arrays()["weights"].nbytes <= 2 * 3 * (9 + 3 * 6)
    np.testing.assert_array_equal(head.weights(2)[0], ridge.weights(2)[0])


# ---- one network for all subsets -------------------------------------------------------------------------------


def masked_task() -> tuple[LinearHead, NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    features, labels, targets = task(600, 8)
    x = np.concatenate(features, axis=1)
    weight, bias = ridge_of(features, targets).weights(7)
    return ZeroFill(weight, bias, [3, 3, 3]), x, labels, targets.astype(np.float32)


def test_an_untrained_masked_head_is_the_trained_fusion_where_everyone_answers() -> None:
    trained, x, labels, targets = masked_task()
    x[:, 4] = 3.0  # a dead feature
    head = fit_masked(trained, x, labels, targets, hidden=16, updates=0)
    arrived = dict(enumerate(np.split(x, 3, axis=1)))
    np.testing.assert_allclose(head.logits(arrived), trained.logits(arrived), atol=0.02)


@pytest.mark.parametrize("kind", [Rescale, LogitAverage, ReplicaAverage])
def test_an_untrained_masked_head_averages_the_devices_that_the_trained_fusion_averages(kind: type[LinearHead]) -> None:
    zero_fill, x, labels, targets = masked_task()
    weight, bias = zero_fill.weights(7)
    x -= x.mean(axis=0)  # then the mean of absent devices is zero
    trained: LinearHead
    if kind is LogitAverage:
        trained = LogitAverage(weight, np.tile(bias, (3, 1)), zero_fill.widths)
    elif kind is ReplicaAverage:
        trained = ReplicaAverage(weight[:6], bias, zero_fill.widths, (0, 1, 0))
    else:
        trained = Rescale(weight, bias, zero_fill.widths)
    head = fit_masked(trained, x, labels, targets, hidden=16, updates=0)
    for mask in range(1, 8):
        arrived = {i: x[:, 3 * i : 3 * i + 3] for i in members(mask)}
        np.testing.assert_allclose(head.logits(arrived), trained.logits(arrived), atol=0.02)


def test_the_served_network_is_the_one_that_was_trained_to_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, x, labels, targets = masked_task()
    kept: list[tuple[MaskedNetwork, NDArray[np.float32]]] = []

    def train(
        network: MaskedNetwork, widths: object, groups: object, features: NDArray[np.float32], *rest: object
    ) -> None:
        torch.manual_seed(3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        kept.append((network, features))

    monkeypatch.setattr("nonn.distill.masked._train", train)
    head = fit_masked(trained, x, labels, targets, hidden=16, updates=1)
    ((network, features),) = kept
    for mask in range(1, 8):
        answered = torch.tensor([[float(mask >> i & 1) for i in range(3)]])
        masked = torch.from_numpy(features) * answered.repeat_interleave(3, dim=1)
        with torch.no_grad():
            expected = network(masked, answered, torch.zeros(len(x), dtype=torch.long)).numpy()
        got = head.logits({i: x[:, 3 * i : 3 * i + 3] for i in members(mask)})
        np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def test_a_masked_head_is_better_than_its_start_where_few_devices_answer() -> None:
    trained, x, labels, targets = masked_task()
    held_out, held_out_labels, _ = task(1000, 9)
    before, after = (
        held_out_accuracy(head, held_out, held_out_labels, 0)
        for head in (trained, fit_masked(trained, x, labels, targets, hidden=16, updates=300))
    )
    assert after > before + 0.05
    alone = fit_masked(trained, x, labels, None, hidden=16, updates=300)  # to labels, without a teacher
    assert held_out_accuracy(alone, held_out, held_out_labels, 0) > before + 0.05


def test_masked_heads_of_one_seed_are_equal_and_leave_the_random_numbers_of_torch_alone() -> None:
    trained, x, labels, targets = masked_task()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second, other = (
        fit_masked(trained, x, labels, targets, hidden=16, updates=5, seed=seed).to_arrays() for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["weight"], other["weight"])
