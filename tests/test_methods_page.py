"""docs/methods.md: every option that it names exists and loads, and no objective is left out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from nonn.config import Experiment, load_experiment
from nonn.config.objectives import ObjectivesConfig
from nonn.distill.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "methods.md").read_text()
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if re.match(r"\| [0-4] \|", line)
]
TABLES = "|".join(field.name for field in dataclasses.fields(Experiment))
SETTINGS = re.findall(rf"`((?:{TABLES})\.[\w.]+)(?: = ([^`]+))?`", TEXT)

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
    own = {field.name for field in dataclasses.fields(ObjectivesConfig)} - {"others"}
    assert own <= set(OBJECTIVES)
    assert named == own


def test_every_row_says_where_the_method_is_or_that_it_is_not_here() -> None:
    assert [int(row[0]) for row in ROWS] == sorted(int(row[0]) for row in ROWS)
    assert len({row[1] for row in ROWS}) == len(ROWS) >= 49
    for row in ROWS:
        assert len(row) == 4, row
        assert "`" in row[3] or row[3].startswith("not here"), row
