"""Runtimes of a student: ONNX Runtime, or C compiled for the device, with a small common interface.

The interface is small because runtimes differ from device to device: ncnn is about 1.9 times as fast on a Raspberry
Pi 5, and a microcontroller has neither. Each runtime is imported only if it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, InputSpec, StudentEntry
from nonn.errors import BudgetError, BundleError
from nonn.rpc.wire import Array
from nonn_device.vitals import peak_bytes, resident_bytes

__all__ = ["OnnxRuntime", "Runtime", "batch_within", "memory_left", "open_runtime"]

Float32 = NDArray[np.float32]

_PROBE = 32  # samples in the run that measures the memory of one sample


class Runtime(Protocol):
    """Runs one student; called from one thread at a time."""

    @property
    def name(self) -> str:
        """Name and version, for the model's metadata."""
        ...

    def run(self, batch: Array) -> Float32:
        """Raw inputs [B, …], uint8 or float32 → features [B, d_i]."""
        ...


def open_runtime(
    kind: str, bundle: Bundle, device: int, *, threads: int = 1, library: Path | None = None, key: bytes | None = None
) -> Runtime:
    """Loads a student of a bundle.

    Args:
        kind: ``onnx``, ``c``, or the place of a board (``nonn_device.board``).
        bundle: with this student's file.
        device: number of the student.
        threads: of one inference; ONNX Runtime only.
        library: the compiled student; None is the path that ``nonn export`` uses.
        key: of a board; None for frames with a CRC only.

    Raises:
        BundleError: the student cannot be loaded or run, or differs from its entry in the manifest.
    """
    student, spec = bundle.manifest.students[device], bundle.input_of(device)
    if kind == "onnx":
        return OnnxRuntime(bundle.student_path(device), student, spec, threads)
    if kind != "c":
        from nonn_device.board import BoardRuntime

        return BoardRuntime(kind, student, spec, key=key)
    from nonn_device.compiled import CompiledRuntime, library_path

    return CompiledRuntime(library or library_path(bundle.path, device), student, spec)


def batch_within(runtime: Runtime, spec: InputSpec, limit_mb: int, max_batch: int) -> int:
    """The largest batch with which the process stays within its memory, measured by running a batch.

    Args:
        runtime: of the student.
        spec: its input.
        limit_mb: limit of the process's resident memory, in megabytes.
        max_batch: upper bound of the result.

    Raises:
        BudgetError: a single sample would exceed the limit, or the process already does.
    """
    probe, held = min(_PROBE, max_batch), resident_bytes()
    peak_bytes(reset=True)
    runtime.run(np.zeros((probe, *spec.shape), np.float32))
    # A request is in memory as message, as raw values and as float32, in addition to the run itself.
    sample = max(peak_bytes() - held, 0) / probe + 3 * 4 * float(np.prod(spec.shape))
    left = memory_left(limit_mb)
    if left < sample:
        raise BudgetError(
            f"{runtime.name}: the node uses {held / 1e6:.0f} MB and one sample needs {sample / 1e6:.1f} MB more, over "
            f"the {limit_mb} MB of --memory; allow more, or use --runtime c, which needs less"
        )
    # The other half is for requests that wait.
    return min(max_batch, max(1, int(left / sample / 2)))


def memory_left(limit_mb: int) -> int:
    """Bytes that the process may still take; negative if it has taken more than its limit."""
    return 1_000_000 * limit_mb - resident_bytes()


class OnnxRuntime:
    """A student in ONNX Runtime on the CPU.

    Args:
        path: the ONNX file.
        student: its entry in the manifest.
        spec: its input.
        threads: threads of one inference; 1 leaves the other cores to the device.

    Raises:
        BundleError: ONNX Runtime cannot load or run the file, or its features differ from the manifest.
    """

    def __init__(self, path: Path, student: StudentEntry, spec: InputSpec, threads: int = 1) -> None:
        import onnxruntime  # a node with a compiled student does without it

        self._version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Spinning threads wait for work at full power, which would drain a battery.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
            # Nearly all requests have a single sample. With buffers bound once, such a run costs half as much.
            self._sample = np.zeros((1, *spec.shape), np.float32)
            self._features = np.zeros((1, student.width), np.float32)
            self._bound = self._session.io_binding()
            # The first inference allocates; done here, not in the first request.
            features = self._session.run(["features"], {self._input: self._sample})[0]
        except Exception as exc:  # onnxruntime has no public base class for its errors
            raise BundleError(f"{path}: ONNX Runtime cannot run it ({exc}); build the bundle again") from exc
        if features.shape != (1, student.width) or features.dtype != np.float32:
            raise BundleError(
                f"{path}: returns {features.dtype} features {list(features.shape)}, but the manifest has float32 [1, "
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
