"""A bundle whose students do nothing, so that the time of an answer is the cost of serving it.

Each student returns the first ``WIDTH`` values of its input as its features, a slice without arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, InputSpec, Manifest, StudentEntry, write_bundle
from nonn.bundle.manifest import ACCURACY, CONSISTENCY, FEATURES, FUSION
from nonn.enumeration import enumerate_subsets
from nonn.fusion import RidgePerSet, gram
from nonn.fusion.consistency_fit import fit_consistency

__all__ = ["CLASSES", "SHAPE", "WIDTH", "idle_bundle"]

SHAPE = (3, 32, 32)  # CIFAR
CLASSES = 10
WIDTH = 32  # one mean per filter, for a 256-filter teacher over eight devices
SAMPLES = 500
ENUMERATED = 10  # most devices whose subsets are all evaluated


def idle_bundle(path: Path, num_devices: int = 8, seed: int = 0) -> Bundle:
    """Writes a bundle of students that do nothing.

    Args:
        path: its folder.
        num_devices: number of devices N.
        seed: seed of the random samples for its ridge head and its accuracy table.

    Raises:
        ModuleNotFoundError: the onnx package is missing (extra ``train``).
    """
    rng = np.random.default_rng(seed)
    inputs = rng.integers(0, 256, (SAMPLES, *SHAPE), np.uint8)
    labels = rng.integers(0, CLASSES, SAMPLES)
    recorded = inputs.reshape(SAMPLES, -1)[:, :WIDTH].astype(np.float32)
    features = [recorded] * num_devices
    head = RidgePerSet(
        *gram(np.concatenate(features, axis=1), 8.0 * np.eye(CLASSES)[labels]), ridge=1e-4, widths=[WIDTH] * num_devices
    )
    if num_devices <= ENUMERATED:
        correct = enumerate_subsets(head, features, labels).correct
    else:  # two minutes for sixteen; what an answer costs does not depend on its accuracy
        correct = SAMPLES * np.bitwise_count(np.arange(1 << num_devices)).astype(np.int64) // (2 * num_devices)
    students = tuple(
        StudentEntry(i, i, f"students/student-{i}.onnx", "", params=0, macs=0, bytes=0, width=WIDTH)
        for i in range(num_devices)
    )
    manifest = Manifest(
        experiment="idle",
        input=InputSpec(SHAPE, "uint8", (0.0,) * SHAPE[0], (1.0,) * SHAPE[0]),
        classes=tuple(map(str, range(CLASSES))),
        parts=tuple(tuple(range(j * WIDTH, (j + 1) * WIDTH)) for j in range(num_devices)),
        students=students,
        files={},
        teacher={"model": "none", "params": 0, "macs": 0, "accuracy": 1.0},
        data={"name": "noise", "split": "test", "samples": SAMPLES, "fingerprint": "0" * 64},
        provenance={"seed": seed},
        replicas=tuple((i,) for i in range(num_devices)),
    )
    student = _idle_student()
    arrays: dict[str, dict[str, NDArray[Any]]] = {
        FUSION: head.to_arrays(),
        ACCURACY: {"correct": correct, "samples": np.array(SAMPLES)},
        FEATURES: {"labels": labels, **{f"device_{i}": f for i, f in enumerate(features)}},
    }
    if test := fit_consistency(head, features, features):  # answers should cost what they cost in service
        arrays[CONSISTENCY] = test.to_arrays()
    return write_bundle(path, manifest, dict.fromkeys(range(num_devices), student), arrays)


def _idle_student() -> bytes:
    """ONNX bytes of ``input`` [B, 3, 32, 32] → its first values ``features`` [B, WIDTH]."""
    from onnx import TensorProto, helper, numpy_helper

    def vector(name: str, value: int) -> Any:
        return numpy_helper.from_array(np.array([value]), name)

    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Slice", ["flat", "from", "to", "axis"], ["features"]),
        ],
        "idle",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", WIDTH])],
        [vector("from", 0), vector("to", WIDTH), vector("axis", 1)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())
