from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from nonn.cli import main
from nonn.config import AUTO, Experiment, load_experiment
from nonn.errors import ConfigError, DataError
from nonn.experiment import pilot, workspace
from nonn.experiment.pilot import choose_design, designed, designs
from nonn.experiment.workspace import Workspace
from nonn.partition.redundancy import Design
from tests.toys import TINY

QUICK = (*TINY, "partition.pilot_epochs=1", "teacher.epochs=6")


def auto(*more: str) -> Experiment:
    return load_experiment(None, (*QUICK, "partition.parts=auto", *more))


@pytest.fixture(scope="module")
def piloted(tiny_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in which the pilots of every design are finished."""
    runs = shutil.copytree(tiny_runs, tmp_path_factory.mktemp("piloted") / "runs")
    choose_design(Workspace(auto(), runs))
    return runs


@pytest.fixture
def runs(piloted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(piloted, tmp_path / "runs")


def test_every_divisor_and_two_overlaps_are_tried() -> None:
    assert designs(8) == (*map(Design, (1, 2, 4, 8)), Design(8, 2), Design(8, 4))
    assert designs(5) == (Design(1), Design(5), Design(5, 2))
    assert designs(1) == (Design(1),)


def test_an_experiment_without_open_choices_is_left_as_it_is(tiny: Experiment, tmp_path: Path) -> None:
    space = Workspace(tiny, tmp_path)
    assert designed(space) is space
    assert not any(tmp_path.iterdir())


def test_the_design_with_the_best_expected_accuracy_is_chosen_and_pilots_run_once(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "fit", lambda *_, **__: pytest.fail("trained again"))
    chosen = choose_design(Workspace(auto(), runs)).experiment
    found = json.loads((runs / "tiny" / "pilot" / "pilot.json").read_text())
    assert [(t["parts"], t["overlap"]) for t in found["trials"]] == [(1, 1), (2, 1), (4, 1), (4, 2)]
    assert found["law"] == "independent p=0.1"
    best = max(found["trials"], key=lambda t: (t["expected_accuracy"], -t["bytes_per_answer"]))
    assert (chosen.partition.parts, chosen.partition.overlap) == (best["parts"], best["overlap"])
    assert found["chosen"] == best


def test_the_failure_law_decides(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students that are never trained further: only the weights of the sets differ between two laws."""
    monkeypatch.setattr(pilot, "designs", lambda _: (Design(1), Design(2)))
    calm = choose_design(Workspace(auto("devices.p_fail=0.0"), runs)).experiment
    trials = {}
    for law in ("k-of-n k=0", "k-of-n k=3"):
        choose_design(Workspace(auto(f"guarantees.law={law}"), runs))
        trials[law] = json.loads((runs / "tiny" / "pilot" / "pilot.json").read_text())["trials"]
    whole, last = trials.values()
    assert all(w["expected_accuracy"] > x["expected_accuracy"] for w, x in zip(whole, last, strict=True))
    assert calm.partition.parts != AUTO


def test_networks_need_a_number_of_parts() -> None:
    with pytest.raises(ConfigError, match=r"`nonn run` chooses one, or set it$"):
        Workspace(auto(), Path("unused")).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition.overlap=2", "leave it out"),
        ("partition.pilot_epochs=0", "must be at least 1"),
        ("partition.parts=automatic", "must be a whole number ≥ 1 or 'auto'"),
        ("partition.parts=-1", "or 'auto'"),
    ],
)
def test_bad_values_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        auto(text)


def test_a_partition_chooses_its_design_first(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pilot, "designs", lambda _: (Design(2),))
    sets = [option for text in (*QUICK, "partition.parts=auto", "distill.epochs=1") for option in ("--set", text)]
    experiment = runs / "auto.toml"
    experiment.write_text("")
    assert main(["partition", str(experiment), "--runs", str(runs), "--json", *sets]) == 0
    assert len(json.loads(capsys.readouterr().out)["parts"]) == 2


@pytest.mark.slow
def test_a_demo_chooses_its_design_before_it_runs(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pilot, "designs", lambda _: (Design(2),))
    changes = ("partition.parts=auto", "devices.count=2", "distill.epochs=1")
    sets = [option for text in (*QUICK, *changes) for option in ("--set", text)]
    assert main(["demo", "--runs", str(runs), "--json", *sets]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["failed"] for row in report["measured_live"]] == [0, 1]
    assert [row["lost"] for row in report["measured_live"]] == [0] * 2
    assert {device["part"] for device in report["devices"]} == {0, 1}


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[]", b'{"parts": 2}', b'{"parts": "two"}'])
def test_a_damaged_result_of_a_pilot_is_named_with_the_remedy(
    runs: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(pilot, "designs", lambda _: (Design(2),))
    (file,) = (runs / "tiny" / "pilot" / "parts-2-overlap-1").rglob("trial.json")
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"not a readable pilot \(.*; remove the folder and run again") as caught:
        choose_design(Workspace(auto(), runs))
    assert str(file.parent) in str(caught.value)


def test_a_pilot_trains_no_longer_than_the_experiment() -> None:
    short = dataclasses.replace(auto(), distill=dataclasses.replace(auto().distill, epochs=1))
    assert pilot._pilot(short, Design(2)).distill.epochs == 1
