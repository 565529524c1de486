"""Cost on a device: size, start, memory, idle processor time and inference, for ONNX Runtime and for compiled C.

The student is a WRN-16-1 for 32×32 images with 32 features, 0.18 million parameters, the published size for CIFAR, with
random weights: size, time and memory do not depend on them. The cost of 8 bits in accuracy is measured on digits,
trained for fewer epochs than by default; benchmarks/int8.py measures it for fully trained students.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import psutil

from nonn.bundle import Bundle, InputSpec, Manifest, StudentEntry, write_bundle
from nonn.bundle.manifest import ACCURACY, FUSION
from nonn.config import ExportConfig, load_experiment
from nonn.enumeration import enumerate_subsets
from nonn.fusion import ZeroFill
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request

__all__ = ["bench_device", "bench_int8", "device_bundle"]

Figures = dict[str, float]

SHAPE, WIDTH, CLASSES = (3, 32, 32), 32, 10
STARTS = 5
REQUESTS = 50  # before memory is measured
IDLE_S = 2.0


def device_bundle(
    folder: Path, model: str = "wrn-16-1", shape: tuple[int, ...] = SHAPE, width: int = WIDTH, sends: str = "bridge"
) -> Bundle:
    """Two students with the same random weights: device 0 in float, device 1 in 8 bits.

    Args:
        folder: for the bundle.
        model: as ``student.model`` has it.
        shape: of one sample [C, H, W] or [C, T].
        width: features of a reply.
        sends: ``bridge`` or ``penultimate``.
    """
    import torch

    from nonn.export import export_onnx
    from nonn.export.deploy import deploy
    from nonn.students import Student, measure_cost
    from nonn.teacher import Normalise

    torch.manual_seed(0)
    mean, std = (127.0,) * shape[0], (70.0,) * shape[0]
    network = Student(model, shape, width, Normalise(mean, std, len(shape) - 1), sends).eval()
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (64, *shape), np.uint8)
    data, cost = export_onnx(network, shape, inputs[:8]), measure_cost(network, shape)
    served = [deploy(ExportConfig(weights=weights), i, data, inputs) for i, weights in enumerate(("float32", "int8"))]
    features = [one.features(inputs) for one in served]
    head = ZeroFill(rng.normal(size=(2 * width, CLASSES)), np.zeros(CLASSES), [width] * 2)
    table = enumerate_subsets(head, features, rng.integers(0, CLASSES, len(inputs)))
    manifest = Manifest(
        experiment="device",
        input=InputSpec(shape, "uint8", mean, std),
        classes=tuple(map(str, range(CLASSES))),
        parts=(tuple(range(width)),),
        students=tuple(
            StudentEntry(i, 0, f"students/student-{i}{one.suffix}", "", cost.params, cost.macs, 0, width, **one.entry())
            for i, one in enumerate(served)
        ),
        files={},
        teacher={},
        data={},
        replicas=((0, 1),),
    )
    arrays = {
        FUSION: head.to_arrays(),
        ACCURACY: {"correct": table.correct, "samples": np.array(table.samples)},
    }
    return write_bundle(folder / "bundle", manifest, {i: one.data for i, one in enumerate(served)}, arrays)


def bench_device(_: Bundle) -> Figures:
    """All figures of one device except accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = device_bundle(Path(folder))
        command = [sys.executable, "-m", "nonn", "export", str(bundle.path), "--target", "c", "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        compiled = json.loads(done.stdout)["students"]
        sizes = [float(student.bytes) for student in bundle.manifest.students]
        figures = {
            "node_install_mb": _install_mb(),
            "int8_size_ratio": sizes[1] / sizes[0],
            "c_flash_bytes": float(compiled[0]["flash_bytes"]),
            "c_ram_bytes": float(compiled[0]["ram_bytes"]),
            "c_int8_flash_bytes": float(compiled[1]["flash_bytes"]),
            "c_int8_ram_bytes": float(compiled[1]["ram_bytes"]),
        }
        for runtime, name in (("onnx", "node"), ("c", "node_c")):
            figures |= {f"{name}_{key}": value for key, value in _node(bundle, runtime).items()}
        return figures | _inference(bundle)


def bench_int8(_: Bundle) -> Figures:
    """Accuracy lost by 8 bits on the same trained students: the larger loss of none and half failed."""
    from nonn.experiment.run import run
    from nonn.report import build_report

    settings = ("experiment.name=int8", "export.weights=int8", "export.features=int8", "distill.epochs=10")
    with tempfile.TemporaryDirectory() as folder:
        bundle = run(load_experiment(None, settings), runs=Path(folder)).bundle
        report = build_report(bundle)
    precision, traffic = report.precision, report.traffic
    assert precision is not None, "the experiment builds an int8 bundle"
    assert traffic.layer_maps is not None, "the teacher has known shapes"
    drop = {row.failed: row.drop for row in precision.drop_by_failures}
    return {
        "int8_accuracy_drop_points": 100 * max(drop[0], drop[4]),
        "int8_digits_size_ratio": precision.size_ratio,
        "bytes_per_answer": float(traffic.bytes_per_answer),
        "bytes_per_answer_float32": float(traffic.as_floats),
        "bytes_per_answer_layer_maps": float(traffic.layer_maps),
    }


def _install_mb() -> float:
    script = Path(__file__).parent.parent / "scripts" / "base_install.py"
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)["node_install_mb"])


def _node(bundle: Bundle, runtime: str) -> Figures:
    """One node: time until it is ready, memory after serving, processor time when idle; medians of several starts."""
    ready, rss, idle = [], [], []
    command = [sys.executable, "-m", "nonn_device", "serve", str(bundle.path), "--student", "0", "--watch-stdin"]
    request = new_request("student-0", {"input": np.zeros((1, *SHAPE), np.uint8)}, {})
    for _ in range(STARTS):
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--runtime", runtime],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["address"]
            ready.append(time.perf_counter() - start)
            with grpc.insecure_channel(address) as channel:
                stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
                for _ in range(REQUESTS):
                    stub.ModelInfer(request)
            watched = psutil.Process(process.pid)
            before = watched.cpu_times()
            time.sleep(IDLE_S)
            after = watched.cpu_times()
            idle.append(100 * (after.user + after.system - before.user - before.system) / IDLE_S)
            rss.append(watched.memory_info().rss / 1e6)
        finally:
            process.terminate()
            process.communicate()
    return {
        "ready_s": statistics.median(ready),
        "rss_mb": statistics.median(rss),
        "idle_cpu_percent": statistics.median(idle),
    }


def _inference(bundle: Bundle) -> Figures:
    """One answer of one sample in each runtime and in torch eager, one thread, interleaved; medians."""
    import torch
    from nonn_device.runtime import open_runtime

    from nonn.students import Student
    from nonn.teacher import Normalise

    torch.set_num_threads(1)
    network = Student("wrn-16-1", SHAPE, WIDTH, Normalise([127.0] * 3, [70.0] * 3, 2)).eval()
    inputs = np.random.default_rng(0).integers(0, 256, (1, *SHAPE)).astype(np.float32)
    tensor = torch.from_numpy(inputs)

    def eager() -> None:
        with torch.inference_mode():
            network(tensor)

    runtimes = {
        "infer_onnx_ms": open_runtime("onnx", bundle, 0),
        "infer_int8_ms": open_runtime("onnx", bundle, 1),
        "infer_c_ms": open_runtime("c", bundle, 0),
        "infer_c_int8_ms": open_runtime("c", bundle, 1),
    }
    runs: dict[str, Callable[[], object]] = {key: lambda r=r: r.run(inputs) for key, r in runtimes.items()}
    runs["infer_torch_ms"] = eager
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(50):
        for key, call in runs.items():
            start = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - start)
    return {key: 1e3 * statistics.median(values) for key, values in times.items()}
