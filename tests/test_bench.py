from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nonn.bench.bundle import SHAPE, WIDTH, idle_bundle
from nonn.rpc.wire import Array
from tests.serving import run


def test_serving_is_measured_beside_its_floor_and_batching_beside_none() -> None:
    options = ("--devices", "2", "--requests", "30", "--clients", "8", "--rounds", "1", "--seconds", "0.3", "--json")
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


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = run("nonn", "bench", "serve", "--ray", tmp_path / "python")
    assert ended.returncode == 3
    assert f"{tmp_path / 'python'}: interpreter not found" in ended.stderr


def test_a_student_that_does_nothing_sends_the_first_values_of_its_input(tmp_path: Path) -> None:
    from nonn_device.runtime import OnnxRuntime

    bundle = idle_bundle(tmp_path / "idle", num_devices=3)
    runtime = OnnxRuntime(bundle.student_path(2), bundle.manifest.students[2], bundle.manifest.input)
    batch: Array = np.random.default_rng(0).integers(0, 256, (5, *SHAPE)).astype(np.float32)
    np.testing.assert_array_equal(runtime.run(batch), batch.reshape(5, -1)[:, :WIDTH])
    np.testing.assert_array_equal(runtime.run(batch[:1]), batch[:1].reshape(1, -1)[:, :WIDTH])
