"""What runs a student: ONNX Runtime, or C compiled for the device, behind a small interface.

The interface is small because the runtime is what changes from device to device: ncnn is about 1.9 times as fast on a
Raspberry Pi 5, and a microcontroller has neither. Each is imported only where it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, InputSpec, Student
from nonn.errors import BudgetError, BundleError
from nonn.rpc.wire import Array
from nonn_device.vitals import peak_bytes, resident_bytes

__all__ = ["OnnxRuntime", "Runtime", "batch_within", "open_runtime"]

Float32 = NDArray[np.float32]

_PROBE = 32  # samples of the run that tells what one sample takes


class Runtime(Protocol):
    """Runs one student; called from one thread at a time."""

    @property
    def name(self) -> str:
        """Name and version, for the model's metadata."""
        ...

    def run(self, batch: Array) -> Float32:
        """Raw inputs [B, …], uint8 or float32 → features [B, d_i]."""
        ...


def open_runtime(kind: str, bundle: Bundle, device: int, *, threads: int = 1, library: Path | None = None) -> Runtime:
    """A student of a bundle, ready to run.

    Args:
        kind: ``onnx`` or ``c``.
        bundle: with this student's file.
        device: number of the student.
        threads: of one inference; ONNX Runtime only.
        library: the compiled student; None is where ``nonn export`` puts it.

    Raises:
        BundleError: the student cannot be loaded or run, or is not what the manifest says.
    """
    student, spec = bundle.manifest.students[device], bundle.input_of(device)
    if kind == "onnx":
        return OnnxRuntime(bundle.student_path(device), student, spec, threads)
    from nonn_device.compiled import CompiledRuntime, library_path

    return CompiledRuntime(library or library_path(bundle.path, device), student, spec)


def batch_within(runtime: Runtime, spec: InputSpec, limit_mb: int, max_batch: int) -> int:
    """The largest batch with which the process stays within its memory, as measured by running one.

    Args:
        runtime: of the student.
        spec: what it takes.
        limit_mb: resident memory that the process may hold, in megabytes.
        max_batch: the answer where memory does not matter.

    Raises:
        BudgetError: the process holds more already, or a single sample is too much.
    """
    probe, held = min(_PROBE, max_batch), resident_bytes()
    peak_bytes(reset=True)
    runtime.run(np.zeros((probe, *spec.shape), np.float32))
    # A request is held as the message, as raw values and as float32 besides what the run itself takes.
    sample = max(peak_bytes() - held, 0) / probe + 3 * 4 * float(np.prod(spec.shape))
    left = 1_000_000 * limit_mb - resident_bytes()
    if left < sample:
        raise BudgetError(
            f"{runtime.name}: the node holds {held / 1e6:.0f} MB and one sample takes {sample / 1e6:.1f} MB more, over "
            f"the {limit_mb} MB of --memory; allow more, or use --runtime c, which needs about a third less"
        )
    return min(max_batch, int(left / sample))


class OnnxRuntime:
    """A student in ONNX Runtime on the CPU.

    Args:
        path: the ONNX file.
        student: what the manifest says of it.
        spec: what it takes.
        threads: threads of one inference; 1 leaves the other cores to the device.

    Raises:
        BundleError: ONNX Runtime cannot load or run the file, or it does not do what the manifest says.
    """

    def __init__(self, path: Path, student: Student, spec: InputSpec, threads: int = 1) -> None:
        import onnxruntime  # 30 MB that a node with compiled students does not pay

        self._version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Spinning threads wait for work at full power: a battery would pay for idling.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
            # A single sample is what is asked nearly always. With its buffers bound once, a run costs half as much.
            self._sample = np.zeros((1, *spec.shape), np.float32)
            self._features = np.zeros((1, student.width), np.float32)
            self._bound = self._session.io_binding()
            # The first inference allocates; better now than in the first request.
            features = self._session.run(["features"], {self._input: self._sample})[0]
        except Exception as exc:  # onnxruntime has no public base class for its errors
            raise BundleError(f"{path}: ONNX Runtime cannot run it ({exc}); build the bundle again") from exc
        if features.shape != (1, student.width) or features.dtype != np.float32:
            raise BundleError(
                f"{path}: gives {features.dtype} features {list(features.shape)}, the manifest says float32 [1, "
                f"{student.width}]; build the bundle again"
            )
        ort = onnxruntime.OrtValue.ortvalue_from_numpy
        self._bound.bind_ortvalue_input(self._input, ort(self._sample))
        self._bound.bind_ortvalue_output("features", ort(self._features))

    @property
    def name(self) -> str:
        """Name and version."""
        return f"onnxruntime {self._version}"

    def run(self, batch: Array) -> Float32:
        """Raw inputs [B, …], uint8 or float32 → features [B, d_i]."""
        if len(batch) == 1:
            self._sample[...] = batch
            self._session.run_with_iobinding(self._bound)
            return self._features.copy()
        features: Float32 = self._session.run(["features"], {self._input: batch.astype(np.float32, copy=False)})[0]
        return features
