"""More devices than can be enumerated: a table of a sample of the subsets, and what it says."""

from __future__ import annotations

import asyncio
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_sim.cli import main
from nonn_sim.scenario_file import parse_scenario
from nonn_sim.simulate import simulate_once
from numpy.typing import NDArray

from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.bundle import Bundle, load_bundle
from nonn.config import load_experiment
from nonn.documents import to_json
from nonn.enumeration import count_one_by_one, enumerate_evidence
from nonn.enumeration.sampled import sample_evidence
from nonn.errors import BundleError, ConfigError
from nonn.fusion import RidgePerSet, gram
from nonn.fusion.calibration import fit_temperatures
from nonn.fusion.head import Head
from nonn.fusion.trained import MeanFill, ReplicaAverage, Rescale, ZeroFill
from nonn.reliability.guarantees import judge
from nonn.reliability.intervals import wilson
from nonn.reliability.laws import parse_law
from nonn.reliability.sampled_evidence import SampledEvidence
from nonn.reliability.subsets import mask_of, members
from nonn.report import build_report
from nonn.report.document import Report
from nonn.report.text import text_report
from tests.reports import check_report
from tests.toys import toy_bundle, toy_data

N, MANY, K, SAMPLES = 10, 64, 4, 150
LAW = "independent p=0.2"


def recorded(num_devices: int) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, SAMPLES)
    centres = rng.normal(size=(num_devices, K, 2))
    return [centre[labels] + rng.normal(0, 2, (SAMPLES, 2)) for centre in centres], labels


@pytest.fixture(scope="module")
def ridge() -> RidgePerSet:
    features, labels = recorded(N)
    return RidgePerSet(*gram(np.concatenate(features, axis=1), np.eye(K)[labels]), ridge=0.01, widths=[2] * N)


@pytest.fixture(scope="module")
def sampled(ridge: RidgePerSet) -> SampledEvidence:
    """A sample of subsets of few enough devices that all of them can be enumerated too."""
    return sample_evidence(ridge, *recorded(N), [parse_law(LAW, N)], failed=2, chains=20, draws=60)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("sampled") / "bundle"
    return toy_bundle(folder, MANY, width=1, sampled={"failed": 2, "chains": 4, "draws": 8, "rounds": 1})


@pytest.fixture(scope="module")
def report(bundle: Bundle) -> Report:
    return build_report(load_bundle(bundle.path))


def heads(ridge: RidgePerSet) -> list[Head]:
    rng = np.random.default_rng(2)
    weight, bias, widths = rng.normal(size=(2 * N, K)), rng.normal(size=K), [2] * N
    return [
        ridge,
        ZeroFill(weight, bias, widths),
        Rescale(weight, bias, widths),
        MeanFill(weight, bias, widths, rng.normal(size=2 * N)),
    ]


def test_counts_of_sampled_subsets_are_those_of_the_head(ridge: RidgePerSet) -> None:
    for head in heads(ridge):
        table = sample_evidence(head, *recorded(N), failed=2, chains=5).table
        masks = [table.mask(place) for place in range(len(table.correct))]
        assert (count_one_by_one(head, *recorded(N), masks=masks) == table.correct).all(), head.kind


def test_intervals_and_bounds_contain_what_enumeration_finds(ridge: RidgePerSet, sampled: SampledEvidence) -> None:
    exact, law = enumerate_evidence(ridge, *recorded(N)), parse_law(LAW, N)
    for row, truth, half in zip(
        sampled.by_failures(), exact.by_failures(), sampled.table.sampling().tolist(), strict=True
    ):
        assert row.subsets == truth.subsets
        if row.sampled is None:
            assert row.mean == pytest.approx(truth.mean)
            assert (row.worst, row.worst_subset) == (truth.worst, truth.worst_subset)
            assert half == 0
        else:
            assert row.sampled < row.subsets
            assert row.worst >= truth.worst  # the worst found
            assert abs(row.mean - truth.mean) < 2 * half
            assert row.interval is not None
            assert truth.interval is not None
            assert row.interval[1] - row.interval[0] > truth.interval[1] - truth.interval[0]
    assert {row.failed for row in sampled.by_failures() if row.sampled is None} == {0, 1, 2, N - 1}
    expected, truth_value = sampled.expected(law), float(law.probabilities() @ exact.table.accuracy)
    assert expected.bound[0] <= truth_value <= expected.bound[1]
    unseen = sum(math.comb(N, k) * 0.2**k * 0.8 ** (N - k) for k in range(3, N + 1))
    assert expected.bound[1] - expected.bound[0] == pytest.approx(unseen)
    assert abs(expected.value - truth_value) < 0.02
    shapley, ends = sampled.shapley()
    assert shapley.sum() == pytest.approx(exact.table.accuracy[-1])
    assert np.abs(shapley - exact.shapley()[0]).max() < 0.05
    inside = [low <= value <= high for value, (low, high) in zip(exact.shapley()[0], ends, strict=True)]
    assert sum(inside) >= N - 1  # 95 % each


def test_a_search_finds_worse_subsets_than_the_sample_and_leaves_its_means_alone(ridge: RidgePerSet) -> None:
    exact = enumerate_evidence(ridge, *recorded(N)).by_failures()
    found, plain = (sample_evidence(ridge, *recorded(N), failed=2, chains=4, rounds=r) for r in (4, 0))
    rows = list(zip(found.by_failures(), plain.by_failures(), exact, strict=True))
    for row, without, truth in rows:
        assert truth.worst <= row.worst <= without.worst
        assert row.mean == without.mean
        assert found.table.stated(mask_of(row.worst_subset or range(N))).accuracy == row.worst
    assert sum(row.worst < without.worst for row, without, _ in rows) >= 4
    assert sum(row.worst == truth.worst for row, _, truth in rows) >= N - 1


def test_value_of_a_device_is_that_with_few_others_failed(ridge: RidgePerSet, sampled: SampledEvidence) -> None:
    accuracy, full = enumerate_evidence(ridge, *recorded(N)).table.accuracy, (1 << N) - 1
    others = [0, *(1 << j for j in range(1, N))]  # of device 0: none or one has failed
    weight = np.array([0.8 ** (N - 1), *[0.2 * 0.8 ** (N - 2)] * (N - 1)])
    lost = np.array([accuracy[full & ~gone] - accuracy[full & ~gone & ~1] for gone in others])
    assert sampled.importance(np.full(N, 0.2))[0][0] == pytest.approx(weight @ lost / weight.sum())


def test_an_answer_states_its_own_accuracy_where_it_was_evaluated_and_an_estimate_elsewhere(
    sampled: SampledEvidence,
) -> None:
    table = sampled.table
    known = table.stated(table.full & ~0b11)
    assert not known.estimated
    place = table.place(table.full & ~0b11)
    assert place is not None
    assert known.accuracy == table.correct[place] / SAMPLES
    assert known.interval == pytest.approx([float(end) for end in wilson(table.correct[place], SAMPLES)])
    unknown = next(mask for mask in range(1, table.full) if table.place(mask) is None)
    stated = table.stated(unknown)
    assert stated.estimated
    assert table.lookup()[unknown] == stated.accuracy
    of_size = table.accuracy[table.chains[:, N - unknown.bit_count()]]
    assert stated.accuracy == pytest.approx(of_size.mean())
    assert stated.interval[0] <= np.quantile(of_size, 0.1)
    assert stated.interval[1] >= np.quantile(of_size, 0.9)
    assert table.stated(0).interval == (0.0, 0.0)


def test_requests_that_no_device_answers_count_as_wrong(ridge: RidgePerSet) -> None:
    often = parse_law("groups [[0,1,2,3,4,5,6,7,8,9]] p_group=0.5 p=0", N)  # all devices, or none
    found = sample_evidence(ridge, *recorded(N), [often], failed=2, chains=5)
    assert found.table.stated(0).accuracy == 0
    expected = found.expected(often)
    assert expected.value == expected.bound[0] == pytest.approx(found.table.stated(found.table.full).accuracy / 2)
    assert (found.draws[:, found.table.empty] == 0).all()


def test_promises_hold_only_where_the_sample_proves_them(sampled: SampledEvidence) -> None:
    law = parse_law(LAW, N)
    rows = sampled.table.by_failures()
    assert judge(sampled, law, f"accuracy>={rows[2].worst} failed<=2").holds
    broken = judge(sampled, law, "accuracy>=0.99 failed<=5")
    assert not broken.holds
    assert broken.breaking is not None
    with pytest.raises(ConfigError, match="were all evaluated, with more only a sample"):
        judge(sampled, law, f"accuracy>={rows[4].worst} failed<=4")
    found = sampled.expected(law)
    verdict = judge(sampled, law, "expected>=0.2")
    assert verdict.holds
    assert found.bound[0] <= verdict.value < found.value
    assert judge(sampled, law, "P(accuracy>=0.2)>=0.5").value < 1
    with pytest.raises(ConfigError, match="no draws of it"):
        judge(sampled, parse_law("independent p=0.3", N), "expected>=0.2")


def test_a_bundle_of_64_devices_is_reported_with_its_sample(bundle: Bundle, report: Report, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(to_json(report)))
    assert check_report(file) == report
    rows = report.accuracy_by_failures
    assert [row.sampled is None for row in rows] == [True, True, True, *[False] * (MANY - 4), True]
    assert rows[32].subsets == math.comb(MANY, 32)
    assert report.sampling is not None
    assert report.sampling.counted_failed == 2
    for expected in (report.expected_accuracy, report.expected_correlated):
        assert expected is not None
        assert expected.bound is not None
        assert expected.interval is not None
        assert expected.bound[0] <= expected.value <= expected.bound[1]
        assert expected.interval[0] <= expected.value <= expected.interval[1]
    text = text_report(report)
    assert "worst found" in text
    assert "in the worst case found" in text
    assert "whatever the subsets that were not counted reach" in text
    with pytest.raises(BundleError, match="64 devices; this needs the accuracy of all 2\\^N subsets"):
        _ = bundle.table


def test_enumerate_shows_the_stored_sample_of_64_devices(
    bundle: Bundle, report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sets.csv"
    level, kept = 0.5, f"accuracy>={report.accuracy_by_failures[2].worst} failed<=2"
    command = ["enumerate", str(bundle.path), "--level", str(level), "--guarantee", kept]
    assert main([*command, "--csv", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "stored"
    assert found["accuracy_by_failures"] == to_json(report.accuracy_by_failures)
    assert found["law"]["expected"] == report.expected_accuracy.value
    assert found["law"]["expected_bound"] == list(report.expected_accuracy.bound or ())
    assert [row["shapley"] for row in found["devices"]] == [device.shapley for device in report.devices]
    (share,) = found["law"]["levels"]
    stated = {row.level: row for row in report.availability.curves[0].stated}
    assert share["bound"][0] <= share["availability"] <= share["bound"][1]
    if level in stated:
        assert share["availability"] == pytest.approx(stated[level].share)
    assert found["guarantees"][0]["holds"]
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["correct"]) for row in rows] == bundle.accuracies.correct.tolist()
    assert sum(float(row["probability"] or 0) for row in rows) == pytest.approx(1 - found["law"]["unseen"])
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "worst found" in shown
    assert f"guarantee '{kept}' holds" in shown


def test_enumerate_knows_only_bounds_under_a_law_without_draws(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["enumerate", str(bundle.path), "--law", "independent p=0.01", "--level", "0.5"]
    assert main([*other, "--json"]) == 0
    law = json.loads(capsys.readouterr().out)["law"]
    assert law["expected"] is law["levels"][0]["availability"] is None
    assert law["expected_bound"][1] - law["expected_bound"][0] == pytest.approx(law["unseen"])
    assert main(other) == 0
    assert "has no draws of this law" in capsys.readouterr().out
    assert main(["enumerate", str(bundle.path), "--law", "independent p=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["law"]["expected_bound"] == [0, 0]  # no device ever answers
    assert main([*other, "--per-class"]) == 2
    assert "--per-class needs every subset" in capsys.readouterr().err


def test_64_devices_are_served_and_their_answers_travel(bundle: Bundle) -> None:
    inputs = toy_data(200, seed=3)[0][:3]  # those of the recorded features
    missing = (1, 5, 8, 9)
    offline = bundle.predict(inputs, without=missing)
    features = {i: f[:3] for i, f in enumerate(bundle.features[0]) if i not in missing}

    async def scenario() -> Answer:
        return await Aggregator(bundle, []).fuse(features)

    answer = asyncio.run(scenario())
    assert answer.mask == mask_of(range(MANY)) & ~mask_of(missing) == offline.mask
    np.testing.assert_allclose(answer.logits, offline.logits, atol=1e-3)
    assert answer.expected_accuracy_estimated
    assert offline.expected_accuracy_estimated
    back = Answer.read(answer.outputs(), answer.parameters(), 0.0)  # its mask exceeds an integer of the protocol
    assert (back.mask, back.expected_accuracy_interval) == (answer.mask, answer.expected_accuracy_interval)
    assert back.expected_accuracy_estimated
    assert not bundle.predict(inputs, without=[1]).expected_accuracy_estimated


def test_64_devices_are_simulated_with_their_own_subsets(bundle: Bundle) -> None:
    scenario = parse_scenario(
        {
            "scenario": {"name": "many", "requests": 40},
            "load": {"rate_per_s": 10.0},
            "nodes": {"mtbf_s": 20.0, "mttr_s": 5.0},
        },
        "test",
    )
    figures, trace = simulate_once(scenario, bundle)
    assert len(trace.sets) > 1
    stated = [bundle.accuracies.stated(int(mask)).accuracy for mask in trace.mask[trace.answered]]
    assert figures["accuracy"] == pytest.approx(np.mean(stated))
    assert max(len(members(int(mask))) for mask in trace.mask) > 16


def test_temperatures_of_many_devices_go_by_the_number_that_answers() -> None:
    features, labels = recorded(17)
    head = ReplicaAverage(np.random.default_rng(0).normal(size=(2, K)), np.zeros(K), [2] * 17, [0] * 17)
    found = fit_temperatures(head, features, labels)
    assert found.shape == (18,)
    warm = head.with_temperatures(found)
    assert warm.temperature((1 << 17) - 1) == found[17]
    assert warm.temperature(0b101) == found[2]


@pytest.mark.parametrize("override", ["fusion.head=logistic", "fusion.temperature=set"])
def test_what_needs_all_subsets_is_refused_before_training(override: str) -> None:
    with pytest.raises(ConfigError, match="at most 16"):
        load_experiment(None, ("devices.count=20", "partition.parts=4", override))
