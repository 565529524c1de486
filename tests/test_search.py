"""``student.model = "search:wrn-DEPTH"``: greedy, within the limits, and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nonn.config import Experiment, load_experiment
from nonn.errors import BudgetError, ConfigError
from nonn.experiment import workspace
from nonn.experiment.precheck import check_before_data
from nonn.experiment.search import _Search, search_widths
from nonn.experiment.workspace import Workspace
from nonn.students.sizing import models_named
from tests.toys import TINY

SEARCH = (*TINY, "student.model=search:wrn-10", "student.search_epochs=1")


@pytest.fixture
def runs(tiny_runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_runs, tmp_path / "runs")
    return tmp_path / "runs"


def test_a_model_that_is_not_searched_is_left_as_it_is(tiny: Experiment, tmp_path: Path) -> None:
    space = Workspace(tiny, tmp_path)
    assert search_widths(space) is space


def test_the_search_widens_the_best_stage_while_it_fits(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that only the third stage lowers, and less and less."""

    def loss(_search: _Search, name: str, _teacher: object) -> float:
        first, second, third = map(float, name.split("-")[-1].split("x"))
        return 1 / third + 0.01 * (first + second)

    monkeypatch.setattr(_Search, "_loss", loss)
    classes = "devices.classes=[{name='pi', count=3, params=60_000}, {name='watch', params=30_000}]"
    space = Workspace(load_experiment(None, [*(s for s in SEARCH if "count" not in s), classes]), runs)
    chosen = search_widths(space).experiment
    found = json.loads((space.folder / "search" / "search.json").read_text())
    assert [entry["device"] for entry in found] == ["0 ('pi')", "3 ('watch')"]
    assert [entry["chosen"] for entry in found] == [kind.model for kind in chosen.devices.classes]
    widths = [[float(w) for w in entry["chosen"].split("-")[-1].split("x")] for entry in found]
    assert widths[0][2] > widths[1][2] > 0.25
    for entry in found:
        assert entry["losses"][entry["chosen"]] == min(entry["losses"].values())
    for params, entry in zip((60_000, 30_000), found, strict=True):
        tight = load_experiment(None, [*TINY, f"student.model={entry['chosen']}", f"devices.budget.params={params}"])
        Workspace(tight, runs, dataset=space.data).check()


def test_networks_of_a_search_are_trained_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_experiment(None, [*SEARCH, "devices.budget.params=9_000"])
    chosen = search_widths(Workspace(config, runs)).experiment
    losses = json.loads((runs / "tiny" / "search" / "search.json").read_text())[0]["losses"]
    assert 1 < len(losses) < 8
    assert chosen.student.model == min(losses, key=lambda name: losses[name])
    monkeypatch.setattr(workspace, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert search_widths(Workspace(config, runs)).experiment == chosen


def test_a_search_that_cannot_be_made_says_why(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"search needs a limit: set params or macs"):
        load_experiment(None, list(SEARCH))
    limit = "devices.budget.macs=1"
    with pytest.raises(ConfigError, match="needs a number of parts"):
        load_experiment(None, [*SEARCH, limit, "partition.parts=auto"])
    with pytest.raises(BudgetError, match=r"student 'staged-wrn-10-0\.25x0\.25x0\.25' is over its budget"):
        search_widths(Workspace(load_experiment(None, [*SEARCH, limit]), runs))
    for model, words in (("search:inverted-11", "write search:wrn-DEPTH"), ("search:wrn-11", "depth must be")):
        with pytest.raises(ConfigError, match=words):
            check_before_data(load_experiment(None, [*SEARCH, limit, f"student.model={model}"]))
    with pytest.raises(ConfigError, match=r"`nonn run` searches one, or set it$"):
        models_named("search:wrn-10")
