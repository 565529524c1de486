"""Heads fitted to real (untrained) students: each against what it should be by definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nonn.config import DataConfig, FusionConfig, load_experiment
from nonn.data import Split
from nonn.data.augment import Augment
from nonn.distill import FusionLayer, Students
from nonn.distill.fitting import Fitting, Passes
from nonn.distill.heads import KINDS, HeadFitter, choose_ridge, held_out_accuracy
from nonn.enumeration import enumerate_subsets
from nonn.errors import ConfigError, ShapeError
from nonn.fusion import Head, LinearHead, MeanFill, RidgePerSet, gram
from nonn.fusion.head import OF_LABELS, OF_SUMS
from nonn.reliability.subsets import members, membership
from nonn.students import Student
from nonn.teacher import Normalise, Teacher
from tests.calibration import calibration
from tests.toys import SHAPE, toy_data

CONFIG = FusionConfig(passes=2, hidden=32, updates=200)


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
        "precision",
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


@pytest.mark.parametrize("kind", [*KINDS, "best"])
def test_heads_of_labels_are_refused_where_there_are_none(kind: str) -> None:
    overrides = [f"fusion.head={kind}", "distill.picture=a.jpg", "distill.objectives.ce.weight=0"]
    if kind not in OF_LABELS | {"best"}:
        assert load_experiment(None, overrides).fusion.head == kind
        return
    with pytest.raises(ConfigError, match="patches have no labels"):
        load_experiment(None, overrides)


def test_what_heads_are_fitted_to_is_listed_for_heads_of_nonn() -> None:
    assert set(KINDS) >= OF_SUMS | OF_LABELS
    assert not OF_SUMS & OF_LABELS


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
