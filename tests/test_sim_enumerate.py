from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nonn_sim.enumerate import count_few_failures, enumerate_bundle, mean_estimate, sample_failures, sample_law
from numpy.typing import NDArray

from nonn.enumeration import count_correct, count_one_by_one, enumerate_evidence, enumerate_subsets
from nonn.enumeration.counter import Counter
from nonn.errors import BundleError, ConfigError, ShapeError
from nonn.fusion import Head, LinearHead, LogisticPerSet, MeanFill, ReplicaAverage, Rescale, RidgePerSet, ZeroFill, gram
from nonn.reliability.laws import assess, parse_law
from nonn.reliability.subsets import members, membership
from tests.toys import toy_bundle

Features = list[NDArray[np.float64]]
KINDS = ("zero-fill", "mean-fill", "rescale", "replica-average", "ridge", "logistic", "unknown")


class Loudest(ZeroFill):
    """A head of a kind that enumeration does not know: only the lowest device that answered counts."""

    kind = "loudest"

    def _solve(self, mask: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        weight = self.weight[self.rows(mask)].copy()
        weight[self.widths[members(mask)[0]] :] = 0
        return weight, self.bias


def problem(
    kind: str, seed: int, *, whole: bool, num_devices: int | None = None, n: int | None = None
) -> tuple[Head, Features, NDArray[np.int64]]:
    """A random head with features and labels; whole numbers make exact ties everywhere."""
    rng = np.random.default_rng(seed)
    num_devices = num_devices or int(rng.integers(1, 8))
    classes, n = int(rng.integers(2, 7)), n or int(rng.integers(1, 120))
    parts = [0]
    for _ in range(num_devices - 1):
        parts.append(int(rng.integers(0, max(parts) + 2)))
    part_widths = [int(rng.integers(1, 5)) for _ in range(max(parts) + 1)]
    widths = [part_widths[part] for part in parts]

    def draw(*shape: int) -> NDArray[np.float64]:
        return rng.integers(-1, 2, shape).astype(float) if whole else rng.normal(size=shape)

    features, labels = [draw(n, width) for width in widths], rng.integers(0, classes, n)
    total = sum(widths)
    head: Head
    if kind == "replica-average":
        head = ReplicaAverage(draw(sum(part_widths), classes), draw(classes), widths, parts)
    elif kind in ("ridge", "logistic"):
        everything = np.concatenate(features, axis=1)
        ridge = RidgePerSet(*gram(everything, everything @ draw(total, classes) + draw(n, classes)), 1e-3, widths)
        head = ridge
        if kind == "logistic":
            # Every other set has a solution of its own; the rest are the ridge's.
            stored = range(1, 1 << num_devices, 2)
            head = LogisticPerSet.pack(
                ridge, {mask: (draw(len(ridge.rows(mask)), classes), draw(classes)) for mask in stored}
            )
    elif kind == "mean-fill":
        head = MeanFill(draw(total, classes), draw(classes), widths, draw(total))
    else:
        made = {"zero-fill": ZeroFill, "rescale": Rescale, "unknown": Loudest}[kind]
        head = made(draw(total, classes), draw(classes), widths)
    return head, features, labels


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), whole=st.booleans(), per_class=st.booleans())
# Logits that cancel to the last bit of float64: a product of few rows rounds them otherwise than the whole batch.
@example(seed=496546, whole=True, per_class=False)
def test_counts_equal_those_of_fusing_each_set_anew(kind: str, seed: int, whole: bool, per_class: bool) -> None:
    head, features, labels = problem(kind, seed, whole=whole)
    fused = np.zeros((1 << head.num_devices, head.num_classes), dtype=np.int64)
    outcomes = np.zeros((len(labels), 1 << head.num_devices), dtype=bool)
    for mask in range(1, 1 << head.num_devices):
        logits = head.logits({i: features[i] for i in members(mask)})
        right = logits.astype(np.float32).argmax(axis=1) == labels
        outcomes[:, mask] = right
        fused[mask] = np.bincount(labels[right], minlength=head.num_classes)
    expected = fused if per_class else fused.sum(axis=1)
    np.testing.assert_array_equal(count_correct(head, features, labels, per_class=per_class), expected)
    found = enumerate_evidence(head, features, labels).outcomes
    assert found is not None
    np.testing.assert_array_equal(found.packed, np.packbits(outcomes, axis=1, bitorder="little"))


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_counts_are_the_same_when_samples_and_sets_take_several_blocks(kind: str) -> None:
    # More samples than a block and more devices than a batch of leaves or a cell of the ridge.
    head, features, labels = problem(kind, 5, whole=False, num_devices=10, n=5000)
    masks = np.random.default_rng(0).integers(1, 1 << 10, 40).tolist()
    counts = count_correct(head, features, labels)
    np.testing.assert_array_equal(counts[masks], count_one_by_one(head, features, labels, masks=masks))
    by_class = count_correct(head, features, labels, per_class=True)
    np.testing.assert_array_equal(by_class.sum(axis=1), counts)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_hardly_any_margin_is_in_doubt(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, features, labels = problem(kind, 5, whole=False, num_devices=8, n=2000)
    doubtful = []
    original = Counter.judge

    def counting(self: Counter, masks: Any, rows: Any, margins: Any, doubt: Any, settle: Any = None) -> None:
        doubtful.append(int((np.abs(margins) <= doubt)[masks != 0].sum()))  # the empty set has no answer
        original(self, masks, rows, margins, doubt, settle)

    monkeypatch.setattr(Counter, "judge", counting)
    count_correct(head, features, labels)
    assert sum(doubtful) < 1e-3 * 256 * 2000


@pytest.mark.parametrize("kind", ["zero-fill", "ridge"])
def test_float32_alone_would_count_wrongly_where_margins_drown_in_large_logits(kind: str) -> None:
    head, features, labels = problem(kind, 5, whole=False, num_devices=5, n=300)
    # All logits of the last device's samples shift together: float32 sums lose the margins, the reference does not.
    if isinstance(head, ZeroFill):
        head.weight *= 1e-4
        head.bias[:] = 1e3
    else:
        features = [f + 1e4 for f in features]
        targets = np.random.default_rng(0).normal(size=(300, head.num_classes)) + 1e5
        head = RidgePerSet(*gram(np.concatenate(features, axis=1), targets), 1e-6, head.widths)
    np.testing.assert_array_equal(count_correct(head, features, labels), count_one_by_one(head, features, labels))


@pytest.mark.parametrize("kind", ["zero-fill", "ridge", "logistic"])
def test_values_beyond_float32_and_dead_devices_are_left_to_the_head(kind: str) -> None:
    head, features, labels = problem(kind, 7, whole=False, num_devices=4, n=50)
    huge = [features[0] * 1e200, np.zeros_like(features[1]), *features[2:]]
    np.testing.assert_array_equal(count_correct(head, huge, labels), count_one_by_one(head, huge, labels))


def test_features_that_repeat_each_other_are_counted_as_the_head_solves_them() -> None:
    # Singular but for a ridge near rounding: two orders of elimination give different weights, so only the head's own
    # will do. A ridge below rounding is singular, and an error, with some LAPACKs.
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(200, 3))
    features = [signal, signal * 3, signal @ rng.normal(size=(3, 3)), signal + 1]
    labels = rng.integers(0, 4, 200)
    head = RidgePerSet(*gram(np.concatenate(features, axis=1), rng.normal(size=(200, 4))), 1e-14, [3] * 4)
    # Other features, which do not repeat each other, show the difference.
    new = [rng.normal(size=(200, 3)) for _ in range(4)]
    np.testing.assert_array_equal(count_correct(head, new, labels), count_one_by_one(head, new, labels))


def test_a_label_that_is_no_class_is_never_met() -> None:
    head, features, labels = problem("zero-fill", 3, whole=False, num_devices=3, n=30)
    odd = labels.copy()
    odd[:10] = head.num_classes
    odd[10:12] = -1
    expected = count_correct(head, [f[12:] for f in features], labels[12:])
    np.testing.assert_array_equal(count_correct(head, features, odd), expected)
    table = enumerate_subsets(head, features, odd)
    assert table.samples == 30
    np.testing.assert_array_equal(table.correct, expected)


def test_progress_ends_at_one() -> None:
    for kind in KINDS:
        head, features, labels = problem(kind, 5, whole=False, num_devices=7, n=20)
        seen: list[float] = []
        count_correct(head, features, labels, progress=seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == 1


def test_visiting_every_set_keeps_no_weights() -> None:
    head, features, labels = problem("ridge", 5, whole=True, num_devices=6, n=40)
    assert isinstance(head, LinearHead)
    count_one_by_one(head, features, labels)
    count_correct(head, features, labels)
    assert head.solved() == []
    head.weights(3)
    assert head.solved() == [3]


def test_what_does_not_fit_is_refused() -> None:
    head, features, labels = problem("zero-fill", 5, whole=False, num_devices=3, n=20)
    with pytest.raises(ShapeError, match="features of 2 devices for a head of 3"):
        count_correct(head, features[:2], labels)
    with pytest.raises(ShapeError, match="device 0: features of shape"):
        count_correct(head, features, labels[:-1])
    wide = ZeroFill(np.zeros((17, 2)), np.zeros(2), [1] * 17)
    with pytest.raises(ShapeError, match="17 devices"):
        count_correct(wide, [np.zeros((5, 1))] * 17, np.zeros(5, dtype=np.int64))


def test_enumeration_is_several_times_faster_than_fusing_each_set_anew() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(4000, 16)).astype(np.float32) for _ in range(9)]
    labels = rng.integers(0, 50, 4000)
    head = ZeroFill(rng.normal(size=(144, 50)), rng.normal(size=50), [16] * 9)
    masks = rng.integers(1, 512, 16).tolist()
    start = time.process_time()
    count_one_by_one(head, features, labels, masks=masks)
    one_by_one_s = (time.process_time() - start) * 512 / 16
    start = time.process_time()
    count_correct(head, features, labels)
    assert time.process_time() - start < one_by_one_s / 4  # 20 and more on an idle machine


def test_a_bundles_table_is_what_its_features_give(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=4)
    stored, none = enumerate_bundle(bundle)
    counted, by_class = enumerate_bundle(bundle, recount=True, per_class=True)
    assert none is None
    assert by_class is not None
    np.testing.assert_array_equal(stored.correct, counted.correct)
    assert by_class.shape == (16, 10)


def test_more_than_sixteen_devices_point_to_sampling_and_missing_features_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=2)
    files = {name: digest for name, digest in bundle.manifest.files.items() if name != "features.npz"}
    object.__setattr__(bundle.manifest, "files", files)
    assert enumerate_bundle(bundle)[0].num_devices == 2
    with pytest.raises(BundleError, match=r"has no features\.npz"):
        enumerate_bundle(bundle, per_class=True)
    object.__setattr__(bundle.manifest, "students", bundle.manifest.students * 10)
    with pytest.raises(ConfigError, match=r"20 devices.*--samples"):
        enumerate_bundle(bundle)


# Sampling


def test_sampling_every_set_is_exact() -> None:
    head, features, labels = problem("ridge", 5, whole=False, num_devices=5, n=60)
    table = enumerate_subsets(head, features, labels)
    for stratum, row in zip(sample_failures(head, features, labels, 10), table.by_failures(), strict=True):
        assert (stratum.failed, stratum.subsets, stratum.sampled) == (row.failed, row.subsets, row.subsets)
        assert stratum.mean.estimate == stratum.mean.low == stratum.mean.high == pytest.approx(row.mean)
        assert (stratum.worst, stratum.best) == (row.worst, row.best)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    head, features, labels = problem("zero-fill", 9, whole=False, num_devices=9, n=200)
    truth = enumerate_subsets(head, features, labels).by_failures()[4]
    assert truth.subsets == 126
    hits = 0
    for seed in range(60):
        stratum = sample_failures(head, [f[:200] for f in features], labels, 12, seed=seed)[4]
        assert stratum.sampled == 12
        hits += stratum.mean.low <= truth.mean <= stratum.mean.high
    assert 50 <= hits <= 60  # 57 expected
    assert stratum.mean.high - stratum.mean.low > 0


def test_sampled_sets_are_different_and_of_the_right_size() -> None:
    from nonn_sim.enumerate import _draw

    rng = np.random.default_rng(0)
    for size, count in ((10, 50), (1, 50), (19, 7), (2, 60)):
        masks = _draw(rng, 20, size, count)
        assert len(set(masks)) == len(masks) == min(count, len(list(combinations(range(20), size))))
        assert all(len(members(mask)) == size for mask in masks)


@pytest.fixture(scope="module")
def graded() -> tuple[Head, Features, NDArray[np.int64]]:
    """Ten devices of which two matter most, so that accuracy differs between subsets of one size."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 150)
    strength = np.array([3.0, 3.0, *[0.4] * 8])
    features = [(2 * labels - 1 + rng.normal(0, 2, 150))[:, None] for _ in strength]
    return ZeroFill(np.stack([-strength, strength], axis=1), np.zeros(2), [1] * 10), features, labels


@pytest.mark.parametrize(
    "text",
    [
        "independent p=0.02",
        "groups [[0,1,2],[7,8]] p_group=0.1 p=0.02",
        "k-of-n k=4",
    ],
)
@pytest.mark.parametrize("failed", [0, 1])
def test_intervals_under_a_law_hold_the_exact_figures_as_often_as_they_say(
    text: str, failed: int, graded: tuple[Head, Features, NDArray[np.int64]]
) -> None:
    table, law = enumerate_subsets(*graded), parse_law(text, 10)
    exact = assess(table, law, (0.9,))
    counted = count_few_failures(*graded, failed)
    hits = levels = 0
    for seed in range(80):
        drawn = sample_law(*graded, law, 40, counted, levels=(0.9,), seed=seed)
        low, high = drawn.bound
        assert low <= exact.expected <= high + 1e-12
        assert drawn.unseen == pytest.approx(law.probabilities()[membership(10).sum(axis=1) < 10 - failed].sum())
        hits += drawn.expected.low - 1e-12 <= exact.expected <= drawn.expected.high + 1e-12
        reached = drawn.availability[0.9]
        levels += reached.low - 1e-12 <= exact.levels[0].availability <= reached.high + 1e-12
    assert min(hits, levels) >= 70  # 76 expected


def test_failures_that_are_too_rare_to_draw_leave_the_bound(graded: tuple[Head, Features, NDArray[np.int64]]) -> None:
    law = parse_law("independent p=1e-4", 10)
    drawn = sample_law(*graded, law, 10, count_few_failures(*graded, 2))
    exact = assess(enumerate_subsets(*graded), law).expected
    assert drawn.draws == 0
    assert drawn.bound == (drawn.expected.low, drawn.expected.high)
    assert drawn.bound[1] - drawn.bound[0] == pytest.approx(120e-12, rel=0.01)
    assert drawn.bound[0] <= exact <= drawn.bound[1]


def test_a_law_of_seventy_devices_is_counted_and_sampled() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(40, 1)) for _ in range(70)]
    labels = (sum(features, np.zeros((40, 1)))[:, 0] > 0).astype(np.int64)
    recorded = ZeroFill(np.tile([[-1.0, 1.0]], (70, 1)), np.zeros(2), [1] * 70), features, labels
    counted = count_few_failures(*recorded)
    assert counted.failed == 2  # all subsets with three failures are more than fifty thousand
    assert len(counted.up) == 1 + 70 + 70 * 69 // 2
    drawn = sample_law(*recorded, parse_law("k-of-n k=1", 70), 100, counted, levels=(0.9,))
    margins = sum(features, np.zeros((40, 1)))[:, 0]
    right = [((margins - f[:, 0] > 0) == labels).mean() for f in features]
    assert drawn.expected.low == drawn.expected.high == pytest.approx(np.mean(right))
    assert drawn.availability[0.9].estimate == pytest.approx(np.mean(np.array(right) >= 0.9))
    strata = sample_failures(*recorded, 3, counted=counted)
    assert [row.sampled for row in strata[:4]] == [1, 70, 2415, 3]
    assert strata[1].worst == min(right)


def test_a_mean_of_one_value_says_nothing_and_of_all_says_everything() -> None:
    one = mean_estimate(np.array([0.4]), 10)
    assert (one.low, one.high) == (0, 1)
    every = mean_estimate(np.array([0.4, 0.6]), 2)
    assert every.low == every.high == pytest.approx(0.5)
    # Four of ten: t with three degrees of freedom, and six tenths of the variance are left.
    four = mean_estimate(np.array([0.4, 0.5, 0.5, 0.6]), 10)
    assert four.high - 0.5 == pytest.approx(3.1824 * np.sqrt(0.02 / 3 / 4 * 0.6), abs=1e-5)
    # t with one degree of freedom: 12.706 standard errors, cut to the possible.
    assert mean_estimate(np.array([0.49, 0.51])).high == pytest.approx(0.5 + 12.706 * 0.01, abs=1e-4)


def test_too_few_samples_are_refused() -> None:
    head, features, labels = problem("zero-fill", 5, whole=False, num_devices=3, n=20)
    counted = count_few_failures(head, features, labels, 1)
    with pytest.raises(ConfigError, match="at least two"):
        sample_failures(head, features, labels, 1)
    with pytest.raises(ConfigError, match="at least two"):
        sample_law(head, features, labels, parse_law("k-of-n k=1", 3), 1, counted)
    with pytest.raises(ShapeError, match="4 devices for a head of 3"):
        sample_law(head, features, labels, parse_law("k-of-n k=1", 4), 10, counted)
