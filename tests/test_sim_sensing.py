"""Sensing in virtual time: the aggregator's alignment and duty cycle on simulated clocks, links and batteries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nonn_sim.cli import main
from nonn_sim.sensing import simulate_sensing
from nonn_sim.sensing_scenario import SensingScenario

from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.toml import from_mapping
from tests.recordings import sensing_bundle
from tests.toys import toy_bundle

SHIPPED = sorted((Path(__file__).parent.parent / "simulator" / "sensing").glob("*.toml"))


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
    assert "all units work" in capsys.readouterr().out
    assert main(["sense", str(file), "--bundle", str(bundle.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["answers_missing"] == 0
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
