"""What liars cost on digits: at most one point against the same devices dead, in every way of lying."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from nonn_sim.cli import main
from nonn_sim.liars import measure_honest, measure_lie
from nonn_sim.lies import LIES, Recording

from nonn.aggregator.policy import PolicyConfig
from nonn.bundle import Bundle
from nonn.config import load_experiment
from nonn.errors import BundleError, ConfigError
from nonn.experiment.run import run
from nonn.provenance import code_version, machine
from tests.reports import without_pages
from tests.toys import TINY, toy_bundle


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, tiny_runs: Path) -> Bundle:
    """Eight small students of digits."""
    experiment = load_experiment(None, (*TINY, "devices.count=8", "experiment.name=eight"))
    runs = tmp_path_factory.mktemp("liars")
    shutil.copytree(tiny_runs / "tiny" / "teacher", runs / "eight" / "teacher")  # the same teacher
    with without_pages():
        return run(experiment, runs=runs).bundle


@pytest.fixture(scope="module")
def recording(digits: Bundle) -> Recording:
    return Recording(digits)


@pytest.mark.parametrize("liars", [1, 2])
@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "drift"])
@pytest.mark.slow
def test_a_lie_costs_at_most_a_point_against_the_liars_dead(recording: Recording, lie: str, liars: int) -> None:
    found = measure_lie(recording, lie, liars, requests=1000, sets=2)
    assert found.worst <= 0.01
    assert found.caught > 0.9
    assert found.honest_quarantines == 0
    assert found.honest_excluded == 0
    assert found.first_quarantine is not None
    assert found.first_quarantine >= 3


def test_a_sensor_that_drifts_is_left_out_when_its_drift_begins_to_cost(recording: Recording) -> None:
    found = measure_lie(recording, "drift", 1, requests=1000, sets=2)
    assert found.worst <= 0.01
    assert found.first_quarantine is not None
    assert 20 < found.first_quarantine < 900  # a small drift passes the test
    assert 0.1 < found.caught < 0.95
    assert (found.honest_excluded, found.honest_quarantines) == (0, 0)
    assert found.screened >= found.unscreened


@pytest.mark.parametrize(("lie", "at_most"), [("huge", 0.3), ("adversary", 0.8)])
def test_without_the_test_the_same_lies_cost_much(recording: Recording, lie: str, at_most: float) -> None:
    found = measure_lie(recording, lie, 2, requests=500, sets=1)
    assert found.unscreened < at_most
    untested = measure_lie(recording, lie, 2, requests=500, sets=1, config=PolicyConfig(exclusion_rate=0.0))
    assert untested.screened < found.screened - 0.1
    assert untested.caught == 0.0


def test_intervals_are_of_the_samples_and_not_of_the_requests(recording: Recording) -> None:
    """Four requests for each of the 360 samples say hardly more about new ones than one."""
    found = measure_lie(recording, "adversary", 2, requests=1440, sets=1)
    for key in ("dead", "unscreened", "screened", "worst", "stated"):
        low, high = getattr(found, f"{key}_interval")
        assert low <= getattr(found, key) <= high
    low, high = found.unscreened_interval
    as_if_independent = 2 * 1.96 * (found.unscreened * (1 - found.unscreened) / 1440) ** 0.5
    assert 1.5 * as_if_independent < high - low < 3 * as_if_independent


def test_the_stated_accuracy_is_that_of_the_devices_that_are_fused(recording: Recording) -> None:
    table = recording.bundle.table.accuracy
    found = measure_lie(recording, "huge", 1, requests=300, sets=8)
    assert (
        min(table[255 & ~(1 << i)] for i in range(8)) <= found.stated <= max(table[255 & ~(1 << i)] for i in range(8))
    )


def test_honest_devices_are_left_alone(recording: Recording) -> None:
    honest = measure_honest(recording, 5000)
    assert (honest.excluded, honest.quarantines) == (0, 0)
    assert honest.rate_bound == pytest.approx(3 / 360, rel=0.01)


def test_liars_that_are_a_majority_or_unknown_lies_are_errors(recording: Recording) -> None:
    with pytest.raises(ConfigError, match="minority"):
        measure_lie(recording, "huge", 4)
    with pytest.raises(ConfigError, match="'white' is unknown"):
        measure_lie(recording, "white", 1)


def test_a_bundle_without_the_test_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no consistency\.npz"):
        Recording(toy_bundle(tmp_path / "bundle"))


def test_the_command_prints_the_table_and_the_same_as_json(digits: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["liars", str(digits.path), "--lie", "x100", "--liars", "2", "--requests", "100", "--honest", "100"]
    assert main([*arguments, "--sets", "1"]) == 0
    text = capsys.readouterr().out
    assert "x100" in text
    assert "100 requests: 0 exclusions" in text
    assert main([*arguments, "--sets", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["honest"]["requests"] == 100
    assert document["config"] == {"requests": 100, "sets": 1, "honest": 100, "seed": 0}
    assert (document["machine"], document["code_version"]) == (machine(), code_version())
    lied = measure_lie(Recording(digits), "x100", 2, requests=100, sets=1)
    assert document["lies"] == [json.loads(json.dumps(dataclasses.asdict(lied)))]
    assert f"({100 * lied.dead_interval[0]:.1f}–{100 * lied.dead_interval[1]:.1f})" in text
