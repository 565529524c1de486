from __future__ import annotations

import csv
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_sim.cli import main
from nonn_sim.scenario_file import parse_scenario
from nonn_sim.simulate import simulate
from nonn_sim.sweep import parse_axis, points

from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.reliability.intervals import share_interval
from tests.toys import toy_bundle

SCENARIO = """
[scenario]
name = "swept"
requests = 400

[load]
rate_per_s = 2

[policy]
deadline_s = 0.1

[nodes]
service_s = 0.004
mtbf_s = 30
mttr_s = 10
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("sweep") / "bundle", num_devices=4)


def sweep(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main(["sweep", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_grid_has_every_combination_and_one_at_a_time_has_the_base_once() -> None:
    axes = [parse_axis("p=0.1,0.2,0.3"), parse_axis("devices=4, 3")]
    grid = points(axes)
    assert len(grid) == 6
    assert grid[1] == {"p": 0.1, "devices": 3}
    assert points(axes, one_at_a_time=True) == [
        {"p": 0.1, "devices": 4},
        {"p": 0.2, "devices": 4},
        {"p": 0.3, "devices": 4},
        {"p": 0.1, "devices": 3},
    ]


def test_a_law_is_exact_at_every_point(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, file = bundle.table, tmp_path / "sweep.csv"
    vary = ("--vary", "p=0.1,0.4", "--vary", "devices=4,2")
    found = sweep(capsys, bundle.path, "--law", "independent p={p}", *vary, "--level", 0.5, "--csv", file)
    assert len(found["points"]) == 4
    for row in found["points"]:
        n, p = row["devices"], row["p"]
        accuracy = table.accuracy[: 1 << n]
        chance = np.array([p ** (n - mask.bit_count()) * (1 - p) ** mask.bit_count() for mask in range(1 << n)])
        assert row["expected"] == pytest.approx(chance @ accuracy)
        weights = np.zeros(16)
        weights[: 1 << n] = chance
        assert (row["expected_low"], row["expected_high"]) == pytest.approx(bundle.evidence.mean(weights[None])[0])
        assert row["accuracy_p01_low"] <= row["accuracy_p01"] <= row["accuracy_p01_high"]
        assert row["availability_0.5"] == pytest.approx(chance[accuracy >= 0.5].sum())
    with file.open(newline="") as lines:
        written = list(csv.DictReader(lines))
    assert [float(line["expected"]) for line in written] == [row["expected"] for row in found["points"]]


def test_a_scenario_is_simulated_at_every_point_and_what_matters_most_comes_first(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # no further processes: ten seconds less
    scenario, figure = tmp_path / "s.toml", tmp_path / "s.svg"
    scenario.write_text(SCENARIO)
    vary = ("--vary", "load.rate_per_s=2,3", "--vary", "nodes.mttr_s=10,1,100")
    options = ("--scenario", scenario, *vary, "--one-at-a-time", "--figure", "availability", "--seeds", 2)
    found = sweep(capsys, bundle.path, *options, "--svg", figure)
    assert len(found["points"]) == 4
    assert [row["key"] for row in found["swings"]] == ["nodes.mttr_s", "load.rate_per_s"]
    drawn = figure.read_text()
    assert drawn.startswith("<svg")
    assert drawn.index(">nodes.mttr_s<") < drawn.index(">load.rate_per_s<")  # the widest bar is on top
    # The last point again, from a scenario written by hand.
    tree = tomllib.loads(SCENARIO.replace("mttr_s = 10", "mttr_s = 100"))
    over = simulate(parse_scenario(tree), bundle, seeds=2, compare=False)["rows"][0]["over_seeds"]
    assert found["points"][3]["nodes.mttr_s"] == 100
    for name in ("accuracy", "availability"):
        assert found["points"][3][name] == over[name]["mean"]
        assert found["points"][3][f"{name}_sd"] == over[name]["sd"]
    ends = share_interval(over["accuracy"]["mean"], bundle.table.samples)
    assert (found["points"][3]["accuracy_low"], found["points"][3]["accuracy_high"]) == ends
    assert main(["sweep", str(bundle.path), *map(str, options)]) == 0
    assert "what matters most" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--law", "independent p={p}", "--vary", "p=2"), "must not exceed 1"),
        (("--law", "independent p={p}", "--vary", "p"), "--vary p: write KEY=V1,V2"),
        (("--law", "independent p=0.1", "--vary", "devices=5"), "5 is not a number of devices, 1 to 4"),
        (("--law", "independent p={p}", "--vary", "p=0.1", "--vary", "p=0.2"), "--vary p: given twice"),
        (("--law", "k-of-n k={k}", "--vary", "k=1", "--svg", "x.svg", "--figure", "speed"), "--figure speed"),
        (("--scenario", "S", "--vary", "nodes.mtbf=3"), "mtbf"),  # as in a file: 3
    ],
)
def test_bad_input_is_an_error_that_names_the_option(
    bundle: Bundle, tmp_path: Path, options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text(SCENARIO)
    given = [str(scenario) if option == "S" else option for option in options]
    assert main(["sweep", str(bundle.path), *given]) == (3 if "S" in options else 2)
    assert words in capsys.readouterr().err


def test_too_many_points_are_refused() -> None:
    many = ",".join(map(str, range(101)))
    with pytest.raises(ConfigError, match="10,201 combinations"):
        points([parse_axis(f"a={many}"), parse_axis(f"b={many}")])
