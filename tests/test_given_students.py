"""Students that are given as a file: to start from, or to be used as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nonn.bundle import load_bundle
from nonn.config import load_experiment
from nonn.errors import ConfigError
from nonn.experiment.run import run
from nonn.experiment.training import train
from nonn.experiment.weights import partition_of, save_students
from nonn.experiment.workspace import Workspace
from tests.toys import TINY


def given(runs: Path, *changes: str, name: str = "given", epochs: int = 0) -> Workspace:
    """The workspace of an experiment that starts from students of the shared tiny run."""
    teacher = runs / "tiny" / "teacher" / "teacher.safetensors"
    overrides = [*TINY, f"experiment.name={name}", f"teacher.weights={teacher}", f"distill.epochs={epochs}", *changes]
    return Workspace(load_experiment(None, overrides), runs)


@pytest.mark.usefixtures("exported_before", "no_pages")
def test_students_used_as_they_are_give_the_same_accuracy(tiny_runs: Path) -> None:
    space = given(tiny_runs, f"student.weights={tiny_runs / 'tiny' / 'students' / 'students.safetensors'}")
    before = load_bundle(tiny_runs / "tiny" / "bundle")
    after = run(space.experiment, runs=tiny_runs).bundle
    assert after.table.correct.tolist() == before.table.correct.tolist()


def test_training_goes_on_from_given_students(tiny_runs: Path) -> None:
    file = tiny_runs / "tiny" / "students" / "students.safetensors"
    train(given(tiny_runs, f"student.weights={file}", "distill.lr=1e-6", name="tuned", epochs=1))
    before, after = load_file(file), load_file(tiny_runs / "tuned" / "students" / "students.safetensors")
    moved = [(before[k].float() - after[k].float()).abs().max().item() for k in before if k.endswith("weight")]
    assert 0 < max(moved) < 1e-3


def test_the_partition_comes_from_the_file(tiny_runs: Path) -> None:
    file = tiny_runs / "tiny" / "students" / "students.safetensors"
    train(given(tiny_runs, f"student.weights={file}", "partition.method=random", name="kept"))
    assert partition_of(file) == partition_of(tiny_runs / "kept" / "students" / "students.safetensors")


def test_students_of_another_architecture_are_refused(tiny_runs: Path) -> None:
    file = tiny_runs / "tiny" / "students" / "students.safetensors"
    with pytest.raises(ConfigError, match=r"students\.safetensors: these weights are of another network"):
        train(given(tiny_runs, f"student.weights={file}", "student.model=wrn-10-0.5", name="other"))


def test_a_missing_file_is_named(tiny_runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.weights = 'nowhere\.safetensors': no such file"):
        train(given(tiny_runs, "student.weights=nowhere.safetensors", name="missing"))


def test_no_epochs_need_students() -> None:
    with pytest.raises(ConfigError, match=r"distill\.epochs.*name trained students with student\.weights"):
        load_experiment(None, ["distill.epochs=0"])


def test_a_file_that_is_not_of_students_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match=r"x\.safetensors: not a readable file of students"):
        partition_of(tmp_path / "x.safetensors")


def test_a_file_without_a_partition_has_none(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert partition_of(tmp_path / "x.safetensors") is None


def test_half_precision_keeps_statistics_and_halves_the_rest(tiny_runs: Path, tmp_path: Path) -> None:
    space = Workspace(load_experiment(None, TINY), tiny_runs)
    file = tiny_runs / "tiny" / "students" / "students.safetensors"
    partition = partition_of(file)
    assert partition is not None
    students = space.networks.students(partition, 0)
    save_students(students, partition, tmp_path / "half.safetensors", half=True)
    half, full = load_file(tmp_path / "half.safetensors"), students.state_dict()
    assert {v.dtype for k, v in half.items() if "running" in k} == {torch.float32}
    assert {v.dtype for k, v in half.items() if k.endswith("weight")} == {torch.float16}
    assert np.isfinite(sum(float(v.float().sum()) for v in half.values()))
    assert half.keys() == full.keys()
