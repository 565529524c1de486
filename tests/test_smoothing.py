"""Smoothing of answers over time: the filter, what it learns, and its measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonn import documents
from nonn.bundle.smoothed import SmoothedTable
from nonn.config import load_experiment
from nonn.enumeration.smoothed import measure_smoothed
from nonn.errors import BundleError, ConfigError, DataError
from nonn.fusion import RidgePerSet, gram
from nonn.reliability.subsets import members
from nonn.reliability.table import SubsetTable
from nonn.report import build_report
from nonn.report.html import render_page
from nonn.report.text import text_report, whole_tables
from nonn.sensing.smoothing import FLOOR, KINDS, Smoothing, learn, weight_of
from tests.recordings import sensing_bundle, smoothing_bundle
from tests.reports import check_report

K = 3


def recordings(number: int = 20, run: int = 10) -> tuple[Any, Any]:
    """Labels 0 0 … 1 1 … 2 2 … of several recordings, and their places."""
    labels = np.tile(np.repeat(np.arange(K), run), number)
    places = np.stack([np.repeat(np.arange(number), K * run), np.tile(np.arange(K * run), number)], axis=1)
    return labels, places


def learned(kind: str, weight: float = 1.0) -> Smoothing:
    return learn(kind, *recordings(), K, weight)


def test_transitions_are_those_of_the_labels_in_the_order_of_their_recordings() -> None:
    labels, places = recordings()
    mixed = np.random.default_rng(0).permutation(len(labels))
    found = learn("hmm", labels[mixed], places[mixed], K, 1.0)
    # Nine of ten windows go on; the last class never changes inside a recording.
    np.testing.assert_allclose(found.transitions[:, 1], [20 / 200, 180 / 200, 0], atol=0.01)
    assert found.transitions[0, 2] < 0.01
    stay = learn("hmm-stay", labels, places, K, 1.0)
    np.testing.assert_allclose(np.diag(stay.transitions), [0.9, 0.9, 1], atol=0.01)
    assert stay.transitions[0, 1] == stay.transitions[0, 2]


def test_windows_across_a_gap_or_of_two_recordings_are_no_transition() -> None:
    labels, places = recordings(2, 1)
    with pytest.raises(DataError, match="no training window follows another"):
        learn("hmm", labels, places * [1, 2], K, 1.0)
    with pytest.raises(DataError, match="no training window follows another"):
        learn("hmm", labels, np.stack([np.arange(len(labels)), places[:, 1]], axis=1), K, 1.0)


def brute_force(smoothing: Smoothing, p: Any, hops: Any) -> Any:
    """Probability of the last class, by the sum over all sequences of classes."""
    likelihood = (((1 - FLOOR) * p + FLOOR / K) / smoothing.prior) ** smoothing.weight
    total = np.zeros(K)
    for path in np.ndindex(*(K,) * len(p)):
        value = smoothing.prior[path[0]] * likelihood[0, path[0]]
        for t in range(1, len(p)):
            step = np.linalg.matrix_power(smoothing.transitions, hops[t])
            value *= step[path[t - 1], path[t]] * likelihood[t, path[t]]
        total[path[-1]] += value
    return total / total.sum()


@pytest.mark.parametrize("kind", ["hmm", "hmm-stay"])
def test_the_forward_filter_is_the_sum_over_all_sequences_of_classes(kind: str) -> None:
    smoothing = learned(kind, 0.5)
    p, hops = np.random.default_rng(1).dirichlet(np.ones(K), 5), [1, 1, 3, 1, 2]
    belief = None
    for window, hop in zip(p, hops, strict=True):
        belief = smoothing.step(belief, window, hop)
    assert belief is not None
    np.testing.assert_allclose(belief, brute_force(smoothing, p, hops))


def test_exponential_weights_forget_by_the_time_that_has_passed() -> None:
    weight = weight_of("exponential", 1.0, 5.0, 4.0)
    smoothing = learned("exponential", weight)
    first, second = np.eye(K)[:2]
    old = smoothing.step(None, first)
    after = smoothing.step(old, second, 4)
    assert after[0] == pytest.approx(np.exp(-1), abs=FLOOR)
    assert after.sum() == pytest.approx(1)
    assert weight_of("hmm", 1.0, 5.0, 4.0) == 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_survives_the_bundle_certain_windows_and_long_gaps(kind: str) -> None:
    smoothing = Smoothing.from_arrays(learned(kind, 0.3).to_arrays())
    belief = smoothing.step(None, np.eye(K)[0])
    for _ in range(200):
        belief = smoothing.step(belief, np.eye(K)[0])
    belief = smoothing.step(belief, np.eye(K)[2], 10**9)
    assert belief.sum() == pytest.approx(1)
    assert (belief > 0).all()
    with pytest.raises(BundleError, match="build the bundle again"):
        Smoothing(kind, 1.0, np.ones(2), np.eye(3))


def test_the_measurement_is_that_of_the_filter_on_each_recording_and_states_what_it_costs() -> None:
    rng = np.random.default_rng(2)
    labels, places = recordings(8)
    features = [(np.eye(K)[labels] + rng.normal(0, 1.0, (len(labels), K))).astype(np.float32) for _ in range(2)]
    head = RidgePerSet(*gram(np.concatenate(features, axis=1), 4.0 * np.eye(K)[labels]), ridge=1e-3, widths=[K, K])
    smoothing = learned("hmm-stay")
    mixed = rng.permutation(len(labels))
    found = measure_smoothed(head, [f[mixed] for f in features], labels[mixed], places[mixed], smoothing)
    for mask in (1, 2, 3):
        p = head.probabilities(head.logits({i: features[i] for i in members(mask)}), mask)
        right, belief = 0, None
        for k in range(len(labels)):
            belief = smoothing.step(None if places[k, 1] == 0 else belief, p[k])
            right += int(belief.argmax()) == labels[k]
        assert found.correct[mask] == right
        assert right > (p.argmax(axis=1) == labels).sum() + 10  # windows of this test are noisy
    assert found.correct[0] == 0
    assert found.runs == 24
    assert found.lag[1] > found.lag[0]  # smoothing follows a change later
    assert (found.effective[1:] <= len(labels)).all()
    table = SmoothedTable(smoothing, SubsetTable(found.correct, len(labels)), found.effective, found.runs, found.lag)
    same = SmoothedTable.from_arrays(table.to_arrays(), 2, K)
    low, high = same.interval(3)
    assert low < same.table.accuracy[3] <= high
    plain_low, _ = same.table.interval(3)
    assert low < plain_low  # windows of one run are not independent
    with pytest.raises(BundleError, match="other devices or classes"):
        SmoothedTable.from_arrays(table.to_arrays(), 2, K + 1)


def test_the_report_states_bytes_on_the_air_and_accuracy_with_smoothing(tmp_path: Path) -> None:
    plain = sensing_bundle(tmp_path / "plain", 3)
    bundle = smoothing_bundle(plain, tmp_path / "smooth")
    report = build_report(bundle)
    documents.write(tmp_path / "report.json", report)
    found = check_report(tmp_path / "report.json").sensing
    assert found is not None
    assert found.smoothing is not None
    assert bundle.smoothed is not None
    student = bundle.manifest.students[0]
    assert found.message_bytes == (student.feature_bytes + 9 + 14,) * 3  # fields of the message; gRPC and HTTP/2
    assert found.raw_bytes == (4 * 2 * 8,) * 3
    assert found.ratio == sum(found.raw_bytes) / sum(found.message_bytes)
    for row, smoothed, before in zip(
        found.smoothing.accuracy_by_failures,
        bundle.smoothed.table.by_failures(),
        bundle.table.by_failures(),
        strict=True,
    ):
        assert (row.mean, row.worst, row.unsmoothed) == (smoothed.mean, smoothed.worst, before.mean)
        assert row.worst_interval[0] <= row.worst <= row.worst_interval[1]
    assert found.smoothing.lag_s == bundle.smoothed.lag[1]  # the hop is a second
    assert "Smoothed over time (hmm)" in text_report(report)
    assert len(whole_tables(report)["smoothing"].rows) == 3
    assert 'id="table-smoothing"' in render_page(report)
    without = build_report(plain).sensing
    assert without is not None
    assert without.smoothing is None
    assert "smoothing" not in documents.to_json(without)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), r"sensing\.smoothing.*data\.group must name the recordings"),
        (("data.group='who'", "devices.count=11", "partition.parts=11"), r"up to 10 devices"),
        (("data.group='who'", "data.hop_s=0.5"), r"sensing\.hop_s.*data\.hop_s, 0\.5 s"),
    ],
)
def test_smoothing_without_an_order_of_windows_is_a_wrong_configuration(more: tuple[str, ...], message: str) -> None:
    sensing = ("sensing.rate_hz=10", "sensing.channels=['x']", "sensing.smoothing='hmm'", "data.reader='csv'")
    with pytest.raises(ConfigError, match=message):
        load_experiment(None, [*sensing, *more])
