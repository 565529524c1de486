"""Features of every student of some bundles, as the runtime of a node computes them; needs the base install only.

    python benchmarks/features.py COUNT OUT.npz BUNDLE...

Runs every ONNX file of each bundle, in float and in 8 bits, on the same COUNT random samples on every machine, one at a
time. ``benchmarks/arm.py`` runs it on this machine and on an emulated one, and compares; so can two devices.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from nonn_device.runtime import OnnxRuntime
from numpy.typing import NDArray

from nonn.bundle import InputSpec, load_bundle

__all__ = ["all_features", "random_samples"]


def random_samples(spec: InputSpec, count: int) -> NDArray[np.float32]:
    """Random whole values 0 to 255 [count, …], in blocks of 4×4 so that filters respond to some of them."""
    blocks = [-(-size // 4) for size in spec.shape[1:]]
    drawn = np.random.default_rng(0).integers(0, 256, (count, spec.shape[0], *blocks))
    for axis in range(2, drawn.ndim):
        drawn = drawn.repeat(4, axis=axis)
    return drawn[tuple(slice(size) for size in (count, *spec.shape))].astype(np.float32)


def all_features(folder: Path, count: int) -> dict[str, NDArray[np.float32]]:
    """Features [count, d] of each ONNX file of a bundle, by ``bundle/file``."""
    bundle = load_bundle(folder)
    found = {}
    for student in bundle.manifest.students:
        spec = bundle.input_of(student.device)
        samples = random_samples(spec, count)
        for path in sorted(folder.glob(f"students/student-{student.device}.*onnx")):
            runtime = OnnxRuntime(path, student, spec)
            found[f"{folder.name}/{path.name}"] = np.concatenate([runtime.run(sample[None]) for sample in samples])
    return found


if __name__ == "__main__":
    arrays: dict[str, NDArray[np.float32]] = {}
    for bundle_folder in sys.argv[3:]:
        arrays |= all_features(Path(bundle_folder), int(sys.argv[1]))
    np.savez(sys.argv[2], allow_pickle=False, **arrays)
