"""docs/methods.md and its study: every option and row exists and loads, and no objective is left out."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from benchmarks.method_rows import DATA, NEXT_TO, ROWS, Data, filled
from nonn.config import Experiment, load_experiment
from nonn.config.objectives import ObjectivesConfig
from nonn.distill.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TEXT = (ROOT / "docs" / "methods.md").read_text()
LISTED = [
    [cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if re.match(r"\| [0-4] \|", line)
]
TABLES = "|".join(field.name for field in dataclasses.fields(Experiment))
SETTINGS = re.findall(rf"`((?:{TABLES})\.[\w.]+)(?: = ([^`]+))?`", TEXT)
OWN = {field.name for field in dataclasses.fields(ObjectivesConfig)} - {"others"}

# What an option needs to load.
VIEWS = ["distill.teacher_views=2", "data.noise=0"]
BESIDE = {
    ("student.model", "'search:wrn-10'"): ["devices.budget.params=20000"],
    ("student.model", "'auto'"): ["devices.classes=[{name='watch', count=8}]"],
    ("distill.objectives.vrkd.weight", "0.9"): VIEWS,
    ("distill.picture", "'photo.jpg'"): ["distill.objectives.ce.weight=0"],
    ("distill.objectives.umts.weight", "0.01"): VIEWS,
}


def test_every_option_that_the_page_names_loads() -> None:
    assert len(SETTINGS) > 30
    for key, value in SETTINGS:
        beside = BESIDE.get((key, value), [])
        load_experiment(None, [f"{key}={value}", *beside] if value else [])
        part: object = load_experiment(None)
        for name in key.split("."):
            part = getattr(part, name)


def test_every_file_that_the_page_names_exists() -> None:
    for name in re.findall(r"`((?:nonn|benchmarks)/[\w/.-]+)`", TEXT):
        assert (ROOT / name).exists(), name


def test_every_objective_is_on_the_page() -> None:
    named = {key.split(".")[2] for key, _ in SETTINGS if key.startswith("distill.objectives.")}
    assert set(OBJECTIVES) >= OWN
    assert named == OWN


def test_every_row_says_where_the_method_is_or_that_it_is_not_here() -> None:
    assert [int(row[0]) for row in LISTED] == sorted(int(row[0]) for row in LISTED)
    assert len({row[1] for row in LISTED}) == len(LISTED) >= 49
    for row in LISTED:
        assert len(row) == 4, row
        assert "`" in row[3] or row[3].startswith("not here"), row


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_every_row_of_the_study_loads_and_every_objective_is_in_one(data: Data) -> None:
    values = {**data.values, "picture": "photo.jpg", "teacher": "teacher.safetensors"}
    weighted: set[str] = set()
    for changes in ROWS.values():
        experiment = load_experiment(data.file, [*data.base, *filled(changes, values)])
        weighted |= set(experiment.distill.objectives.weighted())
    assert weighted == OWN
    assert set(ROWS) >= {*NEXT_TO, *NEXT_TO.values()}


@pytest.mark.parametrize("name", [name for name, data in DATA.items() if (RESULTS / data.results).exists()])
def test_stored_results_are_of_the_rows_as_they_are(name: str) -> None:
    found = json.loads((RESULTS / DATA[name].results).read_text())
    assert found["base"] == list(DATA[name].base)
    rows = {**ROWS, "together": [change for row in found.get("together", ()) for change in ROWS[row]]}
    for row, measured in found["rows"].items():
        assert measured["changes"] == list(rows[row]), row
