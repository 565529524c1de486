"""Losses of a training as CSV and as event files, read by TensorBoard."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest

from nonn.cli import main
from nonn.config import Experiment
from nonn.errors import MissingExtraError
from nonn.experiment import workspace
from nonn.experiment.workspace import Workspace

HISTORY = [{"ce": 2.0, "kd": 0.5}, {"ce": 1.0, "kd": 0.25}, {"ce": 0.5, "kd": 0.125}]


def test_a_killed_and_resumed_training_has_each_epoch_once_in_both_formats(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    space = Workspace(tiny, tmp_path, tensorboard=True)
    stage = space.stage("students", {})

    def train(epochs: range) -> None:
        def fit(*_: Any, progress: Any, **__: Any) -> list[dict[str, float]]:
            for epoch in epochs:
                progress(epoch, len(HISTORY), HISTORY[epoch - 1])
            return HISTORY[: epochs[-1]]

        monkeypatch.setattr(workspace, "fit", fit)
        space.fit(None, tiny.distill, stage, 3, "students")  # type: ignore[arg-type]

    train(range(1, 3))
    train(range(2, 4))  # the second epoch was not in the checkpoint
    with (stage.folder / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    events = accumulator.EventAccumulator(str(stage.folder))
    events.Reload()
    for name in HISTORY[0]:
        expected = [(epoch, losses[name]) for epoch, losses in enumerate(HISTORY, start=1)]
        assert [(int(row["epoch"]), float(row[name])) for row in rows] == expected
        assert [(event.step, event.value) for event in events.Scalars(f"loss/{name}")] == expected


def test_without_tensorboard_the_run_ends_before_data_is_read_with_the_install_command(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError):
        Workspace(tiny, tmp_path, tensorboard=True)
    monkeypatch.setattr(workspace, "load_data", lambda *_: pytest.fail("data was read"))
    (tmp_path / "a.toml").touch()
    assert main(["run", str(tmp_path / "a.toml"), "--runs", str(tmp_path), "--tensorboard"]) == 6
    assert "pip install 'nonn[tensorboard]'" in capsys.readouterr().err
