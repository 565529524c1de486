from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.costs import STUDENTS, estimates
from nonn.bench import students
from nonn.bench.bundle import SHAPE, WIDTH, idle_bundle
from nonn.bundle import load_bundle
from nonn.cli import main
from nonn.export import export_onnx
from nonn.export.memory import activation_bytes
from nonn.rpc.wire import Array
from nonn.students import Student, measure_cost
from nonn.teacher import Normalise
from tests.serving import run
from tests.toys import toy_bundle


@pytest.mark.slow
def test_serving_is_measured_beside_its_floor_and_batching_beside_none() -> None:
    options = ("--devices", "2", "--requests", "5", "--clients", "8", "--rounds", "1", "--seconds", "0.01", "--json")
    ended = run("nonn", "bench", "serve", *options)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    ratio = figures["serve_nonn_p50_ms"] / figures["serve_floor_p50_ms"]
    assert figures["serve_p50_ratio"] == pytest.approx(ratio, rel=0.01)
    assert figures["serve_nonn_p50_ms"] <= figures["serve_nonn_p99_ms"]
    assert figures["serve_batched_per_s"] > 0
    assert figures["serve_batched_speedup"] > 0
    assert figures["serve_node_request_bytes"] > figures["serve_request_bytes"] > np.prod(SHAPE)
    assert figures["devices"] == 2
    assert figures["machine"]["grpcio"]


@pytest.fixture
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of a measurement is one run, since no test looks at times."""
    monkeypatch.setattr(students, "_ROUND_S", 0.0)


@pytest.mark.usefixtures("short_rounds")
def test_the_cost_of_each_model_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--input", "1", "8", "8", "--filters", "6", "--batch", "4"]
    models = ("wrn-10-0.5", "strided-2-1")
    assert main(["bench", "students", *options, *(f"--model={name}" for name in models), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["machine"]["onnxruntime"]
    for row, name in zip(figures["models"], models, strict=True):
        cost = measure_cost(Student(name, (1, 8, 8), 6, Normalise([0.0], [1.0], 2)), (1, 8, 8))
        assert (row["model"], row["params"], row["macs"]) == (name, cost.params, cost.macs)
        assert row["onnx_bytes"] > 4 * cost.params > row["int8_bytes"] / 2 > 0
        assert min(row["answer_ms"], row["int8_answer_ms"], row["step_s"]) > 0


@pytest.mark.usefixtures("short_rounds")
def test_the_table_has_a_line_for_each_student_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=2)
    assert main(["bench", "students", "--bundle", str(bundle.path)]) == 0
    titles, *rows = capsys.readouterr().out.splitlines()
    assert titles.split()[:2] == ["student", "params"]
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert f"{100 * bundle.table.accuracy[1]:.1f} %" in rows[0]


def test_activations_are_the_tensors_that_are_live_at_once() -> None:
    """Three maps of 8 channels: the shortcut, the input and the output of a convolution of a residual block."""
    student = Student("wrn-10-0.5", (1, 8, 8), 6, Normalise([0.0], [1.0], 2)).eval()
    data = export_onnx(student, (1, 8, 8), np.zeros((1, 1, 8, 8), np.float32))
    assert activation_bytes(data) == 4 * 3 * 8 * 8 * 8


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = run("nonn", "bench", "serve", "--ray", tmp_path / "python")
    assert ended.returncode == 2
    assert f"{tmp_path / 'python'}: no such file or folder" in ended.stderr


def test_a_student_that_does_nothing_sends_the_first_values_of_its_input(tmp_path: Path) -> None:
    from nonn_device.runtime import OnnxRuntime

    bundle = idle_bundle(tmp_path / "idle", num_devices=3)
    runtime = OnnxRuntime(bundle.student_path(2), bundle.manifest.students[2], bundle.manifest.input)
    batch: Array = np.random.default_rng(0).integers(0, 256, (5, *SHAPE)).astype(np.float32)
    np.testing.assert_array_equal(runtime.run(batch), batch.reshape(5, -1)[:, :WIDTH])
    np.testing.assert_array_equal(runtime.run(batch[:1]), batch[:1].reshape(1, -1)[:, :WIDTH])


@pytest.mark.parametrize("shipped", [s for s in STUDENTS if s.example.startswith("cifar100")], ids=lambda s: s.example)
def test_the_students_whose_cost_is_measured_are_those_that_examples_ship(shipped: Any) -> None:
    manifest = load_bundle(Path(__file__).parent.parent / "examples" / "bundles" / shipped.example).manifest
    config: Any = manifest.provenance["config"]
    assert (shipped.model, shipped.sends) == (config["student"]["model"], config["student"]["sends"])
    assert (shipped.shape, shipped.width) == (manifest.input.shape, manifest.students[0].width)


def test_boards_are_estimated_by_their_rate_or_by_counted_instructions() -> None:
    row = {"example": "digits", "runtime": "onnx", "weights": "float32", "macs": 13_025_280}
    counted = {("digits, int8", "Cortex-M4F"): {"instructions": 1_680_000}}
    by_rate = dict(estimates(row, counted))
    # A core of a Pi 4 runs a quarter of MobileNet v1 in 77 ms.
    assert by_rate["Pi 4"] == pytest.approx(77 * 13_025_280 / (569e6 / 4), rel=0.01)
    assert by_rate["Pi Zero 2 W"] > by_rate["Pi 4"] > by_rate["Pi 5"]
    by_count = dict(estimates(row | {"runtime": "c", "weights": "int8"}, counted))
    assert by_count == {"Cortex-M4F at 168 MHz": 10.0}
    assert not dict(estimates(row | {"runtime": "c"}, counted))
