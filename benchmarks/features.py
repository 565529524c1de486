"""Features of students as a node's runtime computes them: one sample at a time, on one thread.

    python benchmarks/features.py COUNT OUT.npz STUDENT.onnx...

It needs only ONNX Runtime and NumPy, and every machine draws the same COUNT samples. ``benchmarks/arm.py`` runs it on
this machine and on an emulated one and compares; so can two devices.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__all__ = ["features", "random_samples"]


def random_samples(shape: Sequence[int], count: int) -> NDArray[np.float32]:
    """Random whole values 0 to 255 [count, *shape], in blocks of 4 along each spatial axis."""
    drawn = np.random.default_rng(0).integers(0, 256, (count, shape[0], *(-(-size // 4) for size in shape[1:])))
    for axis in range(2, drawn.ndim):
        drawn = drawn.repeat(4, axis=axis)
    return drawn[tuple(slice(size) for size in (count, *shape))].astype(np.float32)


def features(path: str, count: int) -> NDArray[np.float32]:
    """Features [count, d] of one student."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    samples = random_samples(session.get_inputs()[0].shape[1:], count)
    return np.concatenate([session.run(["features"], {"input": sample[None]})[0] for sample in samples])


if __name__ == "__main__":
    arrays = {path: features(path, int(sys.argv[1])) for path in sys.argv[3:]}
    np.savez(sys.argv[2], allow_pickle=False, **arrays)
