"""What runs a student: ONNX Runtime behind a small interface.

The interface is small because the runtime is what changes from device to device: ncnn is about 1.9 times as fast on a
Raspberry Pi 5, and a microcontroller has neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nonn.bundle import InputSpec, Student
from nonn.errors import BundleError

__all__ = ["OnnxRuntime", "Runtime"]

Float32 = NDArray[np.float32]


class Runtime(Protocol):
    """Runs one student; called from one thread at a time."""

    @property
    def name(self) -> str:
        """Name and version, for the model's metadata."""
        ...

    def run(self, batch: Float32) -> Float32:
        """Raw inputs [B, …] → features [B, d_i]."""
        ...


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
            # The first inference allocates; better now than in the first request.
            features = self.run(np.zeros((1, *spec.shape), np.float32))
        except Exception as exc:  # onnxruntime has no public base class for its errors
            raise BundleError(f"{path}: ONNX Runtime cannot run it ({exc}); build the bundle again") from exc
        if features.shape != (1, student.width) or features.dtype != np.float32:
            raise BundleError(
                f"{path}: gives {features.dtype} features {list(features.shape)}, the manifest says float32 [1, "
                f"{student.width}]; build the bundle again"
            )

    @property
    def name(self) -> str:
        """Name and version."""
        return f"onnxruntime {onnxruntime.__version__}"

    def run(self, batch: Float32) -> Float32:
        """Raw inputs [B, …] → features [B, d_i]."""
        features: Float32 = self._session.run(["features"], {self._input: batch})[0]
        return features
