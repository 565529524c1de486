from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from nonn_device.cli import main
from nonn_device.runtime import batch_within, open_runtime
from nonn_device.self_test import self_test
from nonn_device.vitals import peak_bytes, processor, release_code, resident_bytes

from nonn.bundle import Bundle, InputSpec
from nonn.errors import BudgetError, BundleError
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request
from tests.serving import TIMEOUT_S, run, running_node
from tests.toys import SHAPE, toy_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("runtime") / "bundle", num_devices=2)


def test_check_measures_a_student_on_this_device(bundle: Bundle) -> None:
    done = run("nonn_device", "check", bundle.path, "--student", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["student"] == 1
    assert found["runtime"].startswith("onnxruntime 1.")
    assert found["run_ms"] > 0
    assert found["load_s"] > 0
    assert 20 < found["rss_mb"] < 150
    assert os.uname().machine in found["processor"]


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--student", "5"], 3, "no student 5"),
        (["--student", "0", "--runtime", "c"], 3, "nonn export BUNDLE --target c --student 0"),
        (["--student", "0", "--runtime", "tvm"], 2, "invalid choice: 'tvm'"),
        ([], 2, "--student"),
    ],
)
def test_what_cannot_be_checked_ends_with_its_exit_code(
    bundle: Bundle, options: list[str], code: int, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        ended: object = main(["check", str(bundle.path), *options])
    except SystemExit as usage:
        ended = usage.code
    assert ended == code
    printed = capfd.readouterr()
    assert printed.out == ""
    assert text in printed.err


def test_a_runtime_that_this_processor_cannot_run_is_an_error_with_processor_and_remedy(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An onnxruntime that ends with an illegal instruction when it is imported, as 1.21.0 does on a Raspberry Pi 4."""
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BundleError) as caught:
        self_test(bundle.path, 0, "onnx")
    text = str(caught.value)
    assert "SIGILL" in text
    assert processor() in text
    assert "--runtime c" in text
    assert "1.24.1" in text
    ended = run("nonn_device", "serve", bundle.path, "--student", "0", "--self-test", "--watch-stdin")
    assert ended.returncode == 3
    assert "SIGILL" in ended.stderr
    assert ended.stdout == ""


def test_a_runtime_that_is_killed_for_memory_is_an_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BundleError, match=r"SIGKILL.*memory"):
        self_test(bundle.path, 0, "onnx")


def test_a_node_over_its_memory_limit_does_not_start_and_reports_its_memory(bundle: Bundle) -> None:
    ended = run("nonn_device", "serve", bundle.path, "--student", "0", "--memory", "20", "--watch-stdin")
    assert ended.returncode == 3
    assert "the node uses" in ended.stderr
    assert "20 MB of --memory" in ended.stderr
    assert "--runtime c" in ended.stderr


def test_a_node_within_its_memory_serves(bundle: Bundle) -> None:
    with running_node(bundle.path, 0, "--memory", "400") as (_, ready):
        assert ready["event"] == "ready"


def test_threads_of_an_idle_node_do_not_spin(bundle: Bundle) -> None:
    """A thread that spins takes a whole core, on a loaded machine as well; idle is a hundredth of one."""

    def cpu_s(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with running_node(bundle.path, 0, "--threads", "2") as (child, ready):
        with grpc.insecure_channel(ready["address"]) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            stub.ModelInfer(new_request("student-0", {"input": np.zeros((4, *SHAPE), np.uint8)}, {}), timeout=TIMEOUT_S)
        before = cpu_s(child.pid)
        time.sleep(1.0)  # what is measured is what happens while nothing happens
        assert cpu_s(child.pid) - before <= 0.1


class Hungry:
    """Takes so many bytes a sample, for real."""

    name = "hungry"

    def __init__(self, sample_bytes: int) -> None:
        self.sample_bytes = sample_bytes

    def run(self, batch: np.ndarray) -> np.ndarray:
        taken = np.ones(len(batch) * self.sample_bytes, np.uint8)
        return np.full((len(batch), 1), taken[-1], np.float32)


def in_a_fresh_process(check: Callable[..., None], *arguments: object) -> None:
    """Runs a check of memory where nothing else has been run, trained or tuned before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        executor.submit(check, *arguments).result()


def test_the_batch_that_fits_follows_from_what_a_sample_takes(bundle: Bundle) -> None:
    in_a_fresh_process(_check_batch_that_fits, bundle.manifest.input)


def _check_batch_that_fits(spec: InputSpec) -> None:
    held_mb = resident_bytes() // 1_000_000
    mega = batch_within(Hungry(1_000_000), spec, held_mb + 100, 10_000)
    assert 30 <= mega <= 63  # half of what is left
    assert 3.0 <= mega / batch_within(Hungry(4_000_000), spec, held_mb + 100, 10_000) <= 5.0
    assert batch_within(Hungry(1_000_000), spec, held_mb + 100, 7) == 7
    with pytest.raises(BudgetError, match="one sample needs"):
        batch_within(Hungry(4_000_000), spec, held_mb + 2, 10_000)


def test_the_peak_can_be_reset() -> None:
    in_a_fresh_process(_check_peak_counted_anew)


def _check_peak_counted_anew() -> None:
    taken = np.ones(50_000_000, np.uint8)
    before = peak_bytes()
    del taken
    again = peak_bytes(reset=True)
    assert again < before - 30_000_000
    assert abs(again - resident_bytes()) < 20_000_000


def test_code_is_unmapped_and_mapped_again_where_it_runs_again(bundle: Bundle) -> None:
    runtime, sample = open_runtime("onnx", bundle, 0), np.ones((1, *SHAPE), np.float32)
    before, held = runtime.run(sample), resident_bytes()
    release_code()
    assert resident_bytes() < held - 10_000_000
    np.testing.assert_array_equal(runtime.run(sample), before)


def test_a_node_that_runs_c_needs_no_onnx_runtime_to_be_imported(bundle: Bundle) -> None:
    """The module of runtimes itself imports none; whether a whole node does is tested where there is a library."""
    program = "import sys, nonn_device.runtime, nonn_device.node; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=TIMEOUT_S).returncode == 0


def test_both_runtimes_are_behind_one_interface(bundle: Bundle) -> None:
    runtime = open_runtime("onnx", bundle, 0)
    assert runtime.run(np.zeros((3, *SHAPE), np.float32)).shape == (3, bundle.manifest.students[0].width)
    with pytest.raises(BundleError, match="no compiled student"):
        open_runtime("c", bundle, 0)
