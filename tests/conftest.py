from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from nonn.bundle import Bundle
from nonn.config import Experiment, load_experiment
from nonn.pipeline import Run

# How wide the terminal is in which tests are started decides nothing, here or in the processes that they start.
os.environ["COLUMNS"] = "160"

# A busy machine is no failure.
settings.register_profile("nonn", deadline=None)
settings.load_profile("nonn")

# The digits experiment with everything small: four devices, two parts, two epochs.
TINY = (
    "experiment.name=tiny",
    "teacher.model=wrn-10-1",
    "teacher.epochs=6",
    "partition.parts=2",
    "devices.count=4",
    "distill.epochs=4",
    "fusion.passes=1",
)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    return load_experiment(None, TINY)


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory, tiny: Experiment) -> Path:
    """A folder of runs in which the tiny experiment is finished. Copy it before changing it."""
    runs = tmp_path_factory.mktemp("runs")
    Run(tiny, runs).execute()
    return runs


@pytest.fixture(scope="session")
def tiny_bundle(tiny_runs: Path) -> Bundle:
    from nonn.bundle import load_bundle

    return load_bundle(tiny_runs / "tiny" / "bundle")
