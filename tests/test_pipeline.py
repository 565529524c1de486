from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nonn.bundle import Bundle, load_bundle
from nonn.config import BudgetConfig, Experiment, load_experiment
from nonn.enumeration import enumerate_subsets
from nonn.errors import BudgetError, BundleError, ConfigError, DataError, GuaranteeError, PartitionError
from nonn.experiment import bundling, workspace
from nonn.experiment.progress import Silent, Tick
from nonn.experiment.run import Result, run
from nonn.experiment.teachers import train_teacher
from nonn.experiment.training import train
from nonn.experiment.verdict import say_verdict
from nonn.experiment.workspace import Workspace
from nonn.export import run_onnx
from nonn.fusion import RidgePerSet
from nonn.reliability.table import SubsetTable
from tests.reports import check_report, without_pages
from tests.toys import TINY


def change(experiment: Experiment, section: str, **values: Any) -> Experiment:
    return dataclasses.replace(experiment, **{section: dataclasses.replace(getattr(experiment, section), **values)})


@pytest.fixture
def runs(tiny_runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_runs, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def walk_settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An experiment on sensor windows, in which training takes a tenth of the time of the tiny one."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 240)
    windows = rng.normal(size=(240, 6, 25)).astype(np.float32)
    windows[np.arange(240), labels] += 2
    file = tmp_path_factory.mktemp("data") / "walk.npz"
    np.savez(file, windows=windows, labels=labels, person=np.arange(240) % 4)
    return [
        *TINY,
        "experiment.name=walk",
        "data.reader=npz",
        f"data.path={file}",
        "data.group=person",
        "data.test_groups=[3]",
        "data.noise=0.1",
        "devices.count=2",
        "teacher.epochs=8",
        "distill.epochs=6",
        "teacher.batch=32",
        "distill.batch=32",
    ]


@pytest.fixture(scope="module")
def walk(walk_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The experiment on sensor windows, finished."""
    with without_pages():
        return run(load_experiment(None, walk_settings), runs=tmp_path_factory.mktemp("walk"))


def snapshot(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "report" not in p.parts}


def test_a_run_leaves_a_bundle_and_its_report(tiny_bundle: Bundle, tiny_runs: Path) -> None:
    report = json.loads((tiny_runs / "tiny" / "report" / "report.json").read_text())
    assert report["bundle"].endswith(tiny_bundle.hash)
    assert report["data"] | {"name": "digits", "split": "test", "samples": 360, "classes": 10} == report["data"]
    assert [row["failed"] for row in report["accuracy_by_failures"]] == [0, 1, 2, 3]
    assert report["accuracy_by_failures"][0]["mean"] > 0.8
    losses = (tiny_runs / "tiny" / "students" / "losses.csv").read_text().splitlines()
    assert losses[0].startswith("epoch,ce")
    assert [line.partition(",")[0] for line in losses[1:]] == ["1", "2", "3", "4"]
    assert "<html" in (tiny_runs / "tiny" / "report" / "report.html").read_text()


def test_the_table_is_what_the_exported_students_and_the_stored_head_give(
    tiny_bundle: Bundle, tiny: Experiment
) -> None:
    test = Workspace(tiny, Path("unused")).data.test
    features = [run_onnx(tiny_bundle.student_path(i).read_bytes(), test.inputs) for i in range(4)]
    recorded, labels = tiny_bundle.features
    np.testing.assert_array_equal(labels, test.labels)
    for now, then in zip(features, recorded, strict=True):
        np.testing.assert_array_equal(now, then)
    table = enumerate_subsets(tiny_bundle.head, features, labels)
    np.testing.assert_array_equal(table.correct, tiny_bundle.table.correct)
    assert isinstance(tiny_bundle.head, RidgePerSet)


@pytest.mark.usefixtures("no_pages")
def test_students_that_send_their_penultimate_features_make_a_bundle_without_bridges(
    walk: Result, walk_settings: list[str], tmp_path: Path
) -> None:
    shutil.copytree(walk.folder / "teacher", tmp_path / "walk" / "teacher")
    wide = load_experiment(None, [*walk_settings, "student.sends=penultimate", "student.send_width=24"])
    result = run(wide, runs=tmp_path)
    bundle, report = result.bundle, result.report
    students, bridged = bundle.manifest.students, walk.bundle.manifest.students
    assert [s.width for s in students] == [24] * 2
    assert all(s.params < t.params for s, t in zip(students, bridged, strict=True))
    assert [device.feature_bytes for device in report.devices] == [96] * 2
    features, labels = bundle.features
    table = enumerate_subsets(bundle.head, features, labels)
    np.testing.assert_array_equal(table.correct, bundle.table.correct)


class Recorder:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: dict[str, list[int]] = {}

    def say(self, text: str, /) -> None:
        self.lines.append(text)

    @contextlib.contextmanager
    def bar(self, description: str, total: int, unit: str = "", /) -> Iterator[Tick]:
        done: list[int] = []
        self.bars[f"{description}/{total}"] = done
        yield lambda count, remark: done.append(count)


def test_a_program_runs_an_experiment_file_and_follows_its_progress(
    walk_settings: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, progress = tmp_path / "called.toml", Recorder()
    file.write_text('[experiment]\nname = "called"\n')
    settings = [text for text in walk_settings if not text.startswith("experiment.name")]
    changes = [*settings, "teacher.epochs=1", "distill.epochs=2", "export.recorded=false"]
    result = run(str(file), runs=str(tmp_path / "runs"), overrides=changes, progress=progress)
    assert result.folder == tmp_path / "runs" / "called"
    assert result.bundle.path == result.folder / "bundle"
    assert result.report.experiment == "called"
    assert (result.folder / "report" / "report.json").is_file()
    assert progress.lines[0].startswith("data walk: 162 train")
    assert list(progress.bars) == [
        "teacher wrn-10-1/1",
        "students 2 × wrn-10-1/2",
        "fusion/1",
        "export/2",
        "all answering sets/1",
        "consistency test/1",
    ]
    assert [done[-1] for done in progress.bars.values()] == [1, 2, 1, 2, 1, 1]
    again = run(file, runs=tmp_path / "runs", overrides=changes)
    assert again.bundle.hash == result.bundle.hash
    assert capfd.readouterr() == ("", "")


def test_overrides_go_with_a_file(tiny: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataclasses\.replace"):
        run(tiny, runs=tmp_path, overrides=["distill.epochs=1"])


def test_students_are_compared_with_their_teacher_and_a_gap_has_its_likely_cause(
    runs: Path, tiny: Experiment, tiny_bundle: Bundle
) -> None:
    said: list[str] = []

    class Lines(Silent):
        def say(self, text: str, /) -> None:
            said.append(text)

    space = Workspace(tiny, runs, progress=Lines())
    trained, table = train(space), tiny_bundle.table
    say_verdict(space, trained, tiny_bundle.head, table)
    assert f"students: all 4 fused {100 * table.accuracy[-1]:.2f} %" in said[-1]
    say_verdict(space, trained, tiny_bundle.head, SubsetTable(table.correct // 2, table.samples))
    warning, *causes = said[-4:]
    assert re.search(r"warning: the students are \d+\.\d+ points with all devices and .* with 2 failed below", warning)
    assert "few steps: 40 in 4 epochs; set distill.epochs to 30 or more" in causes[0]
    assert "1,293 training samples" in causes[1] or "set a larger student.model" in causes[1]
    assert "one of 2 parts only" in causes[2]


def test_replicas_learn_the_same_part(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert [s.part for s in manifest.students] == [0, 1, 0, 1]
    assert manifest.replicas == ((0, 2), (1, 3))
    assert sorted(f for part in manifest.parts for f in part) == list(range(64))
    assert [s.width for s in manifest.students] == [len(manifest.parts[s.part]) for s in manifest.students]


@pytest.mark.usefixtures("no_pages")
def test_a_second_run_redoes_nothing(runs: Path, tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(bundling, "export_onnx", lambda *a, **k: pytest.fail("exported again"))
    before = snapshot(runs)
    run(tiny, runs=runs)
    assert snapshot(runs) == before


@pytest.mark.usefixtures("exported_before", "no_pages")
def test_a_changed_head_keeps_teacher_and_students(
    runs: Path, tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "fit", lambda *a, **k: pytest.fail("trained again"))
    result = run(change(tiny, "fusion", head="trained"), runs=runs)
    bundle, report = result.bundle, result.report
    assert bundle.head.kind == report.fusion == "zero-fill"
    result = run(tiny, runs=runs)
    again, report = result.bundle, result.report
    assert again.head.kind == report.fusion == "ridge"


@pytest.mark.usefixtures("exported_before", "no_pages")
def test_a_bundle_without_recorded_features_serves_and_reports_the_same(
    runs: Path, tiny: Experiment, tiny_bundle: Bundle
) -> None:
    progress = Recorder()
    result = run(change(tiny, "export", recorded=False), runs=runs, progress=progress)
    bundle, report = result.bundle, result.report
    kept = runs / "tiny" / "bundles" / tiny_bundle.hash[:12]
    assert f"bundle {bundle.hash[:12]} replaces {kept.name}, which is kept in {kept}" in progress.lines
    assert load_bundle(kept).hash == tiny_bundle.hash
    assert not (bundle.path / "features.npz").exists()
    assert (tiny_bundle.path / "features.npz").exists()
    np.testing.assert_array_equal(bundle.table.correct, tiny_bundle.table.correct)
    assert report.accuracy_by_failures[1].mean == tiny_bundle.table.by_failures()[1].mean
    with pytest.raises(BundleError, match=r"has no features\.npz; build it again with export\.recorded = true"):
        _ = bundle.features
    assert run(tiny, runs=runs).bundle.hash == tiny_bundle.hash  # with the old inputs, the old bundle is back
    assert not kept.exists()
    assert load_bundle(runs / "tiny" / "bundles" / bundle.hash[:12]).hash == bundle.hash


@pytest.mark.usefixtures("exported_before", "no_pages")
def test_a_damaged_bundle_is_built_again_from_the_trained_students(
    runs: Path, tiny: Experiment, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "fit", lambda *a, **k: pytest.fail("trained again"))
    (runs / "tiny" / "bundle" / "students" / "student-1.onnx").write_bytes(b"half")
    bundle = run(tiny, runs=runs).bundle
    np.testing.assert_array_equal(bundle.table.correct, tiny_bundle.table.correct)
    assert not list((runs / "tiny" / "bundles").glob("*"))  # it is the same bundle


@pytest.mark.parametrize(
    "name", ["teacher/teacher.safetensors", "partition/partition.json", "partition/graph.npz",
             "students/students.safetensors"]
)  # fmt: skip
def test_a_damaged_file_of_a_finished_stage_is_named(runs: Path, tiny: Experiment, name: str) -> None:
    file = runs / "tiny" / name
    file.write_bytes(b"\xff")
    with pytest.raises((ConfigError, DataError), match="not a readable") as caught:
        run(tiny, runs=runs)
    assert str(file.parent) in str(caught.value)


@pytest.mark.usefixtures("no_pages")
def test_the_same_seed_gives_the_same_weights_even_after_a_kill_in_the_middle(
    walk: Result, walk_settings: list[str], tmp_path: Path
) -> None:
    """SIGKILL a real `nonn run` after its first epoch of students, run it again, compare with an undisturbed run.

    Both runs that are killed are children of one process, so that torch is imported once.
    """
    command = ["run", str(tmp_path / "walk.toml"), "--runs", str(tmp_path / "runs")]
    (tmp_path / "walk.toml").write_text("")
    for item in walk_settings:
        command += ["--set", item]
    killer = (
        "import os, signal, sys\n"
        "import nonn.experiment.run, torch._dynamo\n"
        "from nonn.trainer import checkpoint as t\n"
        "original = t.save\n"
        "def checkpoint(path, *rest):\n"
        "    original(path, *rest)\n"
        "    if 'students' in str(path) or len(rest[-1]) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.save = checkpoint\n"
        "from nonn.cli import main\n"
        "for _ in range(2):\n"
        "    child = os.fork()\n"
        "    if not child: os._exit(main(sys.argv[1:]))\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", killer, *command], capture_output=True, text=True, timeout=600)
    # Once after the teacher's third epoch, once after the students' first.
    assert done.stdout.split() == [str(-signal.SIGKILL.value)] * 2, done.stderr
    students = tmp_path / "runs" / "walk" / "students"
    assert any(students.iterdir())
    assert not (students / "students.safetensors").exists()
    assert not (tmp_path / "runs" / "walk" / "bundle").exists()
    result = run(load_experiment(tmp_path / "walk.toml", walk_settings), runs=tmp_path / "runs")
    for name in ("teacher/teacher.safetensors", "students/students.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in (result.folder, walk.folder))
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs), name
    assert result.bundle.table.correct.tolist() == walk.bundle.table.correct.tolist()


def test_ready_made_weights_take_the_place_of_training(
    tiny: Experiment, tiny_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_file(tiny_runs / "tiny" / "teacher" / "teacher.safetensors")
    from safetensors.torch import save_file

    network = {k.removeprefix("network."): v for k, v in trained.items() if k.startswith("network.")}
    save_file(network, tmp_path / "w.safetensors")
    monkeypatch.setattr(workspace, "fit", lambda *a, **k: pytest.fail("trained"))
    teacher = train_teacher(Workspace(change(tiny, "teacher", weights=str(tmp_path / "w.safetensors")), tmp_path))
    assert teacher.stage.done
    assert all(torch.equal(v, trained[k]) for k, v in teacher.network.state_dict().items())
    with pytest.raises(ConfigError, match=r"none\.safetensors.: no such file"):
        train_teacher(Workspace(change(tiny, "teacher", weights=str(tmp_path / "none.safetensors")), tmp_path))


@pytest.mark.parametrize(
    ("section", "values", "error", "words"),
    [
        ("partition", {"parts": 65}, PartitionError, "65.*only 64 filters"),
        ("devices", {"budget": BudgetConfig(params=1000)}, BudgetError, "device 0.*params"),
        ("devices", {"budget": BudgetConfig(macs=1000)}, BudgetError, "macs"),
        ("data", {"reader": "parquet", "path": "/no/such/folder"}, DataError, "/no/such/folder"),
        ("teacher", {"model": "resnet-18"}, ConfigError, "teacher.model"),
        ("student", {"model": "resnet-18"}, ConfigError, "resnet-18"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, values: Any, error: Any, words: str
) -> None:
    monkeypatch.setattr(workspace, "fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(error, match=words):
        run(change(tiny, section, **values), runs=tmp_path)


def test_sensor_windows_go_all_the_way(walk: Result) -> None:
    bundle, report = walk.bundle, walk.report
    assert bundle.manifest.input.shape == (6, 25)
    assert bundle.manifest.input.dtype == "float32"
    assert report.data.samples == 60
    assert report.accuracy_by_failures[0].mean > 0.8


QUICK = (*TINY, "teacher.epochs=1", "distill.epochs=1", "devices.count=2")


def test_overlapping_parts_are_taught_to_several_devices(tmp_path: Path) -> None:
    overlap = ["partition.parts=4", "partition.overlap=2", "devices.count=4", "experiment.name=overlap"]
    trained = train(Workspace(load_experiment(None, [*QUICK, *overlap]), tmp_path))
    students, partition = trained.students.network, trained.cut.partition
    assert [s.width for s in students.individual()] == [32] * 4
    with pytest.raises(ConfigError, match="overlap"):
        load_experiment(None, [*QUICK, "partition.overlap=3"])
    assert [len(p) for p in partition.parts] == [16] * 4


def test_assistants_and_generations_are_stages_of_their_own(tmp_path: Path) -> None:
    schedule = ["distill.assistants=['wrn-10-1']", "distill.generations=2", "experiment.name=schedule"]
    experiment = load_experiment(None, [*QUICK, "teacher.model=wrn-10-2", *schedule])
    trained = train(Workspace(experiment, tmp_path))
    students, partition = trained.students.network, trained.cut.partition
    assert partition.num_filters == 64  # the assistant's, not the teacher's 128
    folders = {p.name for p in (tmp_path / "schedule").iterdir() if p.is_dir()}
    assert folders == {"teacher", "assistant-1", "partition", "students-1", "students"}
    first = load_file(tmp_path / "schedule" / "students-1" / "students.safetensors")
    assert any(not torch.equal(v, first[k]) for k, v in students.state_dict().items())


@pytest.mark.usefixtures("exported_before", "no_pages")
def test_a_bundle_that_breaks_a_promise_is_not_written(runs: Path, tiny: Experiment, tiny_bundle: Bundle) -> None:
    kept = change(tiny, "guarantees", require=("accuracy>=0.5 failed<=1", "P(accuracy>=0.5)>=0.9"))
    run(kept, runs=runs)
    check_report(runs / "tiny" / "report" / "report.json")
    before = load_bundle(runs / "tiny" / "bundle").hash
    with pytest.raises(GuaranteeError, match=r"0\.9999"):
        run(change(tiny, "guarantees", require=("accuracy>=0.9999 failed<=3",)), runs=runs)
    assert load_bundle(runs / "tiny" / "bundle").hash == before
