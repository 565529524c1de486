"""What is wrong in an experiment file is found before the data are read, in little time and without a trace."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nonn.config import load_experiment
from nonn.errors import ConfigError
from nonn.experiment import workspace
from nonn.experiment.run import run

LIMIT_S = 2.0  # of this process's processors; most of it loads torch's libraries, the first time

WRONG = {
    "guarantees.require=['accuracy>=0.9 fail<=4']": "guarantee 'accuracy>=0.9 fail<=4'",
    "guarantees.require=['accuracy>=90 failed<=4']": "accuracy",
    "devices.p_fail=2": "devices.p_fail",
    "teacher.model=wnr-16-2": "teacher.model = 'wnr-16-2'",
    "teacher.model=no_such_module:net": "no_such_module",
    "student.model=net-16": "student.model = 'net-16'",
    "teacher.weights=no.safetensors": "teacher.weights = 'no.safetensors': no such file",
    "student.weights=no.safetensors": "student.weights = 'no.safetensors': no such file",
    "student.weights=broken.safetensors": "broken.safetensors: not a readable file of students",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_needs_no_data_is_checked_before_they_are_read(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspace, "load_data", lambda *_, **__: pytest.fail("the data were read"))
    Path("broken.safetensors").write_bytes(b"no weights")
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        run(load_experiment(None, [override, "guarantees.law=independent p=0.1"]), runs="runs")
    assert time.process_time() - started < LIMIT_S
    assert WRONG[override] in str(caught.value)
    assert not list(tmp_path.glob("runs/**/*.safetensors"))


def test_sensing_that_does_not_fit_the_data_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "fit", lambda *_, **__: pytest.fail("a training began"))
    sensing = ["sensing.rate_hz=10", "sensing.channels=['red', 'green']"]
    with pytest.raises(ConfigError, match=r"sensing\.channels: 2 names for inputs of 1 channels"):
        run(load_experiment(None, sensing), runs=tmp_path)
