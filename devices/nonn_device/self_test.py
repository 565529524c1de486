"""Runs a student in a separate process, so that a runtime that crashes on this processor does not kill the node.

Wheels may use instructions that a processor does not have: ONNX Runtime 1.21.0 dies of an illegal instruction on a
Raspberry Pi 4 (microsoft/onnxruntime #23957), without an error that Python could catch. The child loads the runtime,
runs the student on random samples with the data's statistics, as one batch and one by one, and prints its measurements
as one line of JSON.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import InputSpec, load_bundle
from nonn.errors import BundleError, ConfigError, NonnError
from nonn_device.vitals import processor, resident_bytes

__all__ = ["samples_like", "self_test"]

TIMEOUT_S = 120.0  # loading takes a second; a Pi Zero with a cold disk much longer
_SAMPLES = 8
_MEASURED_S = 0.5
_TOLERANCE = 0.02  # of the largest feature: in 8 bits a value may round to a neighbouring step
_REMEDY = {
    "onnx": "install an onnxruntime that is built for it (1.24.1 or later), or compile the student "
    "with `nonn export BUNDLE --target c` and serve it with --runtime c",
    "c": "compile the student on this device, or with a --cc for exactly this processor",
}


def self_test(bundle: Path, device: int, runtime: str, library: Path | None = None) -> dict[str, Any]:
    """Runs a student in a child process.

    Args:
        bundle: folder of the bundle.
        device: number of the student.
        runtime: ``onnx`` or ``c``.
        library: the compiled student; None is the path that ``nonn export`` uses.

    Returns:
        ``student``, ``runtime`` (name and version), ``processor``, ``load_s``, ``run_ms`` of one sample and ``rss_mb``.

    Raises:
        BundleError: the child died of a signal or took too long (the message names processor, runtime and remedy), or
            the student cannot be loaded or run.
        ConfigError: the runtime is a board.
    """
    if runtime not in _REMEDY:
        raise ConfigError(f"--runtime {runtime}: a board is checked when a node opens it; omit --self-test")
    command = [sys.executable, "-m", "nonn_device.self_test", str(bundle), str(device), runtime]
    command += [str(library)] if library else []
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"student {device} did not run within {TIMEOUT_S:g} s on {processor()} with the runtime '{runtime}'; is "
            "the device out of memory?"
        ) from None
    if child.returncode == 0:
        found: dict[str, Any] = json.loads(child.stdout)
        return found
    if child.returncode < 0:
        raise BundleError(f"student {device}: {_death(-child.returncode, runtime)}")
    raise BundleError(child.stderr.strip().splitlines()[-1] if child.stderr.strip() else "the self-test had no output")


def samples_like(spec: InputSpec, count: int) -> NDArray[np.float32]:
    """Random raw values [count, …] with mean and standard deviation of the data."""
    mean, std = (np.reshape(values, (-1,) + (1,) * (len(spec.shape) - 1)) for values in (spec.mean, spec.std))
    return np.random.default_rng(0).normal(mean, std, (count, *spec.shape)).astype(np.float32)


def _death(number: int, runtime: str) -> str:
    """Describes the signal that killed the child."""
    name = signal.Signals(number).name
    if number == signal.SIGILL:
        return (
            f"the runtime '{runtime}' uses an instruction that this processor does not have ({name}; {processor()}); "
            f"{_REMEDY[runtime]}"
        )
    if number == signal.SIGKILL:
        return f"the runtime '{runtime}' was killed ({name}), possibly out of memory; choose a smaller student"
    return f"the runtime '{runtime}' died ({name}; {processor()}); {_REMEDY[runtime]}"


def _run(arguments: list[str]) -> dict[str, Any]:
    """Runs and measures the student, in the child process."""
    from nonn_device.runtime import open_runtime

    path, device, kind = Path(arguments[0]), int(arguments[1]), arguments[2]
    bundle = load_bundle(path, device=device)
    start = time.perf_counter()
    runtime = open_runtime(kind, bundle, device, library=Path(arguments[3]) if len(arguments) > 3 else None)
    loaded_s = time.perf_counter() - start
    inputs = samples_like(bundle.input_of(device), _SAMPLES)
    once, one_by_one = runtime.run(inputs), np.concatenate([runtime.run(x[None]) for x in inputs])
    if not np.isfinite(once).all():
        raise BundleError(
            f"student {device}: {runtime.name} returns features that are not finite; build the bundle again"
        )
    if not np.allclose(once, one_by_one, rtol=0, atol=_TOLERANCE * float(np.abs(once).max())):
        raise BundleError(f"student {device}: {runtime.name} returns other features for a batch than for its samples")
    times: list[float] = []
    while sum(times) < _MEASURED_S and len(times) < 1000:
        start = time.perf_counter()
        runtime.run(inputs[:1])
        times.append(time.perf_counter() - start)
    return {
        "student": device,
        "runtime": runtime.name,
        "processor": processor(),
        "load_s": round(loaded_s, 3),
        "run_ms": round(1e3 * float(np.median(times)), 4),
        "rss_mb": round(resident_bytes() / 1e6, 1),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(_run(sys.argv[1:])))
    except NonnError as exc:
        sys.exit(str(exc))
