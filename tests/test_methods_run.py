"""Methods from an experiment file to trained students, at the smallest size."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from nonn.config import load_experiment
from nonn.experiment import workspace
from nonn.experiment.training import train
from nonn.experiment.workspace import Workspace
from tests.toys import TINY

ONLINE = {"bkd", "dkpp", "cwtm", "dtd", "pcl", "sokd", "ie_kd", "afd", "hint_points"}


def test_methods_of_an_experiment_file_train_once_and_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "ie_kd": ", explore='replicas'",
        "afd": ", against='replicas', maps='attention'",
        "hint_points": ", points=1",
    }
    changes = [f"distill.objectives.{name}={{weight=0.01{options.get(name, '')}}}" for name in sorted(ONLINE)]
    epochs = ["teacher.epochs=1", "distill.epochs=2", "distill.blockwise=1", "distill.curriculum=2"]
    experiment = load_experiment(None, [*TINY, *epochs, *changes, "distill.objectives.kd.top_k=4"])
    trained = train(Workspace(experiment, tmp_path))
    stages = {f.parent.name: f.parent for f in tmp_path.rglob("stage.json")}
    assert {"block-1", "block-2", "block-3"} <= set(stages)
    with (stages["students"] / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= ONLINE
    with (stages["block-3"] / "losses.csv").open() as file:
        assert {"local", "ce"} < set(next(csv.DictReader(file)))
    keys = [json.loads((stages[f"block-{b}"] / "stage.json").read_text())["key"] for b in (1, 2, 3)]
    assert len(set(keys)) == 3

    monkeypatch.setattr(workspace, "fit", lambda *_, **__: pytest.fail("it was trained already"))
    again = train(Workspace(experiment, tmp_path))
    for name, value in trained.students.network.state_dict().items():
        assert torch.equal(value, again.students.network.state_dict()[name]), name
