"""Sensing in virtual time: the aggregator's alignment and duty cycle on simulated clocks, links and batteries."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_sim.cli import main
from nonn_sim.clients import RequestSamples
from nonn_sim.recorded import SensingFaults, plan_of, recorded, step_of
from nonn_sim.samples import own_samples
from nonn_sim.sensing import simulate_sensing
from nonn_sim.sensing_live import Replayed
from nonn_sim.sensing_scenario import SensingScenario

from nonn.bundle import Bundle
from nonn.errors import ConfigError, DataError
from nonn.reliability.subsets import members
from nonn.sensing.columns import rows as read_rows
from nonn.streams import WindowAnswer
from nonn.toml import from_mapping
from tests.recordings import camera_bundle, sensing_bundle
from tests.toys import toy_bundle, toy_data

TESTED = toy_data(200, 3)  # the test split of a toy bundle

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples" / "sensing" / "demo.py"
SHIPPED = sorted((ROOT / "simulator" / "sensing").glob("*.toml"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return sensing_bundle(tmp_path_factory.mktemp("sensing") / "bundle", 4)


def rows(bundle: Bundle, **tables: Any) -> list[dict[str, Any]]:
    tables["sensing"] = {"hours": 0.1} | tables.get("sensing", {})
    result = simulate_sensing(from_mapping(SensingScenario, tables, source="test"), bundle)
    return result["rows"]  # type: ignore[no-any-return]


def test_with_wrong_clocks_and_bursts_of_losses_no_answer_is_missing_and_no_mask_is_wrong(bundle: Bundle) -> None:
    units = {"offset_s": 2.0, "drift_ppm": 100, "loss": 0.2, "burst": 3, "flat_every_h": 0.05, "flat_s": 20}
    (row,) = rows(bundle, units=units)
    assert row["answers"] >= 350
    assert row["answers_missing"] == 0
    assert row["windows_misaligned"] == 0
    assert row["masks_with_a_unit_that_did_not_sense"] == 0
    assert 0.1 < row["windows_lost"] / (4 * row["answers"]) < 0.3
    assert row["units_mean"] < 3.9
    assert abs(row["accuracy"] - row["table"]) < 0.1


def test_a_duty_cycle_keeps_the_goal_and_batteries_last_longer(bundle: Bundle) -> None:
    goal = float(min(bundle.table.accuracy[mask] for mask in (3, 5, 9, 6, 10, 12)))
    battery = {"joules": 1.3, "charge": [1.0, 0.9, 0.8, 1.0]}
    sensing = {"hours": 0.1, "accuracy_goal": goal, "duty_period_s": 30.0}
    everyone, some = rows(bundle, sensing=sensing, battery=battery)
    assert everyone["policy"] == "all units work"
    assert everyone["first_empty_h"] < (some["first_empty_h"] or 1.0)
    assert everyone["below_goal_h"] < (some["below_goal_h"] or 1.0)
    assert some["bytes_per_answer"] < everyone["bytes_per_answer"]
    assert some["wake_ups_per_unit_hour"] < everyone["wake_ups_per_unit_hour"]
    assert some["answers_missing"] == 0
    assert some["goal_reached"] > 0.8


def test_a_battery_lasts_as_long_as_its_energy(bundle: Bundle) -> None:
    quiet = {"idle_mw": 100.0, "window_mj": 0.0, "wake_mj": 0.0, "joules": 20.0}
    (row,) = rows(bundle, battery=quiet)
    assert row["first_empty_h"] * 3600 == pytest.approx(200, abs=2)
    assert row["all_empty_h"] * 3600 == pytest.approx(200, abs=2)
    assert row["answers"] == pytest.approx(200, abs=3)


def test_the_command_prints_and_wrong_scenarios_are_refused(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[sensing]\nhours = 0.01\n")
    assert main(["sense", str(file), "--bundle", str(bundle.path)]) == 0
    assert re.search(r"false masks.*\n.*all units work", capsys.readouterr().out, re.DOTALL)
    assert main(["sense", str(file), "--bundle", str(bundle.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["answers_missing"] == 0
    assert main(["run", str(file), "--bundle", str(bundle.path)]) == 3
    assert "run it with nonn-sim sense" in capsys.readouterr().err
    file.write_text("[scenario]\nname = 'month'\n")
    assert main(["sense", str(file), "--bundle", str(bundle.path)]) == 3
    assert "run it with nonn-sim run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"battery\.charge: 1 values for 4 units"):
        rows(bundle, battery={"charge": [1.0]})
    with pytest.raises(ConfigError, match=r"accuracy goal 1: "):
        rows(bundle, sensing={"accuracy_goal": 1.0})
    with pytest.raises(ConfigError, match=r"units\.burst"):
        rows(bundle, units={"loss": 0.9, "burst": 2})
    with pytest.raises(ConfigError, match="does not say what its nodes measure"):
        rows(toy_bundle(tmp_path / "toy", 2))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid(path: Path) -> None:
    from nonn_sim.sensing_scenario import load_sensing_scenario

    assert load_sensing_scenario(path).sensing.accuracy_goal


def test_a_plan_has_the_losses_failures_and_clocks_of_its_scenario() -> None:
    units = {"offset_s": 2.0, "drift_ppm": 100, "loss": 0.2, "burst": 3, "flat_every_h": 1.0, "flat_s": 60}
    scenario = from_mapping(SensingScenario, {"units": units}, source="test")
    plan = plan_of(scenario, 5, 4000, 5.0)
    assert plan.lost.mean() == pytest.approx(0.2, abs=0.03)
    assert plan.lost.sum() / (plan.lost[1:] & ~plan.lost[:-1]).sum() == pytest.approx(3, rel=0.15)
    # Between failures pass an hour and a minute.
    assert plan.flat.sum() / (~plan.lost).sum() == pytest.approx(1 / 61, rel=0.3)
    assert (max(map(abs, plan.offset_s)), max(map(abs, plan.drift_ppm))) < (2, 100)
    np.testing.assert_array_equal(plan.works, ~(plan.lost | plan.flat))


def test_a_recording_has_the_windows_of_its_unit_without_those_that_are_lost(bundle: Bundle, tmp_path: Path) -> None:
    lost, flat = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    lost[1, 2], flat[3, 2] = True, True
    shown = np.random.default_rng(0).uniform(0, 255, (4, 2, 8)).astype(np.float32)
    plan = SensingFaults(lost, flat, {}, (0.0,) * 4, (0.0,) * 4)
    source = recorded(tmp_path / "2", bundle, 2, shown, plan, 1000.0, 2.0)
    assert source == f"csv:{tmp_path / '2.csv'}?start=1000.062500&speed=2&offset=0&drift=0"
    found = list(read_rows(tmp_path / "2.csv", bundle.sensing_of(2)))
    times = [round(8 * time_s) for time_s, *_ in found]
    assert times == [*range(8), *range(16, 32)]
    np.testing.assert_allclose([row for _, row, _ in found[8:16]], shown[2].T, rtol=1e-5)
    np.testing.assert_allclose([row for _, row, _ in found[16:]], [shown[0, :, 0]] * 8, rtol=1e-5)


def test_no_picture_is_near_the_instant_of_one_that_is_lost(tmp_path: Path) -> None:
    cameras, lost = camera_bundle(tmp_path / "cameras"), np.zeros((4, 2), bool)
    lost[1, 0] = True
    shown = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    faults = SensingFaults(lost, np.zeros_like(lost), {}, (0.0,) * 2, (0.0,) * 2)
    recorded(tmp_path / "0", cameras, 0, shown, faults, 1000.0, 1.0)
    with np.load(tmp_path / "0.npz") as found:
        times, pictures = found["times"], found["pictures"][:, 0, 0, 0]
    assert np.abs(times - 2.0).min() >= 0.2
    assert {round(at): int(pictures[times == at][0]) for at in (1.0, 3.0, 4.0)} == {1: 0, 3: 2, 4: 3}


def test_windows_that_do_not_meet_the_hop_are_not_replayed(bundle: Bundle) -> None:
    spec = bundle.sensing_of(0)
    assert step_of(dataclasses.replace(spec, hop_s=0.5)) == 1.0
    with pytest.raises(ConfigError, match=r"hop_s = 0\.3: a window of 1 s is no multiple of it"):
        step_of(dataclasses.replace(spec, hop_s=0.3))
    with pytest.raises(DataError, match="does not say which data it was tested on; name them with --inputs"):
        own_samples(bundle)


@pytest.mark.slow
def test_processes_of_cameras_run_a_scenario_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = camera_bundle(tmp_path / "cameras")
    np.savez(tmp_path / "tested.npz", inputs=TESTED[0], labels=TESTED[1])
    file = tmp_path / "a.toml"
    file.write_text("[units]\nloss = 0.2\nburst = 2\n")
    options = ("--live", "--inputs", str(tmp_path / "tested.npz"), "--windows", "16", "--speed", "8", "--json")
    assert main(["sense", str(file), "--bundle", str(bundle.path), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"][0]["answers"] >= 15
    (live,) = result["live"]
    assert live["masks_with_a_unit_that_did_not_sense"] == 0
    assert sum(row["windows"] for row in live["rows"]) > 4  # all but two on an idle machine
    assert live["equal_to_offline"] >= 0.8
    assert live["raw_bytes_per_answer"] == pytest.approx(64 * live["units_mean"])


@pytest.mark.parametrize("kind", ["as measured", "other labels", "a missing answer", "a unit that did not sense"])
def test_the_demonstration_ends_with_7_if_answers_or_masks_are_not_those_of_the_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    demo, written = runpy.run_path(str(DEMO)), tmp_path / "found.json"
    features, labels = bundle.features
    order = np.random.default_rng(1).permutation(len(labels))[:60]

    def replayed(bundle: Bundle, inputs: Any, plan: SensingFaults, *_: Any, **options: Any) -> Replayed:
        found = Replayed(used={"node_rss_mb": 70.0, "node_cpu_percent": 1.0})
        for k, works in enumerate(plan.works):
            mask = int(works @ (1 << np.arange(len(works)))) | (kind == "a unit that did not sense")
            if not mask or (kind == "a missing answer" and k == 7):
                continue
            number = int(bundle.head.logits({i: features[i][order[k]][None] for i in members(mask)}).argmax())
            number = (number + (kind == "other labels")) % len(bundle.manifest.classes)
            label, accuracy = bundle.manifest.classes[number], float(bundle.table.accuracy[mask])
            found.answers[k] = WindowAnswer(
                0.0, 0.01, label, 0.9, mask, accuracy, (0.0, 1.0), bytes=10, raw_bytes=100, class_number=number
            )
        return found

    # Other tests run the processes, and read the data.
    names = demo["main"].__globals__
    monkeypatch.setitem(names, "replay", replayed)
    monkeypatch.setitem(names, "own_samples", lambda bundle: RequestSamples(np.zeros((len(labels), 1)), labels))
    options = ["--windows", "60", "--json", str(written)]
    monkeypatch.setattr("sys.argv", ["demo.py", "--bundle", str(bundle.path), *options])
    assert demo["main"]() == (0 if kind == "as measured" else 7)
    assert "--accuracy-goal" in capsys.readouterr().out
    assert json.loads(written.read_text())["goal"]["windows"] == 28
