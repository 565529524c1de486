"""Small real things that several tests need: a bundle of eight linear students, exported as ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from nonn.bundle import Bundle, InputSpec, Manifest, StudentEntry, evidence_arrays, write_bundle
from nonn.bundle.classes import DEFAULT_P_FAIL
from nonn.bundle.known import FILE as KNOWN
from nonn.bundle.known import draw_inputs
from nonn.bundle.manifest import CONSISTENCY
from nonn.enumeration import enumerate_evidence
from nonn.enumeration.sampled import sample_evidence
from nonn.fusion import RidgePerSet, gram
from nonn.fusion.consistency_fit import fit_consistency
from nonn.reliability.sampled_evidence import AnyEvidence
from nonn.report.risk import report_laws
from nonn.sensing import SensingSpec

# The digits experiment with everything small: four devices, two parts, two epochs.
TINY = (
    "experiment.name=tiny",
    "teacher.model=wrn-10-1",
    "teacher.epochs=6",
    "partition.parts=2",
    "devices.count=4",
    "distill.epochs=4",
    "fusion.passes=1",
    "fusion.hidden=16",
    "fusion.updates=20",
    "fusion.steps=[2]",
)
SHAPE = (1, 8, 8)
CLASSES = 10
WIDTH = 4


def linear_student(weight: NDArray[np.float32], shape: tuple[int, ...] = SHAPE) -> bytes:
    """ONNX bytes of a student that flattens its input [B, …] and multiplies it by weight [values of a sample, d]."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Relu", ["product"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_few_digits(path: Path, samples: int = 480) -> Path:
    """Writes an ``.npz`` file of the first digits: they train in a quarter of the time of all."""
    digits = load_digits()
    images = np.rint(digits.images[:samples, None] * (255 / 16)).astype(np.uint8)
    np.savez(path, images=images, labels=digits.target[:samples])
    return path


def toy_data(samples: int, seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy class prototypes: inputs uint8 [n, …], by default [n, 1, 8, 8], and labels [n]."""
    prototypes = np.random.default_rng(0).integers(0, 256, (CLASSES, *shape))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, samples)
    inputs = prototypes[labels] + rng.normal(0, 60, (samples, *shape))
    return inputs.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def toy_bundle(
    path: Path,
    num_devices: int = 8,
    num_parts: int | None = None,
    *,
    tested: bool = False,
    width: int = WIDTH,
    shape: tuple[int, ...] = SHAPE,
    sensing: SensingSpec | None = None,
    sampled: Mapping[str, Any] | None = None,
) -> Bundle:
    """A real bundle with random linear students, a ridge head fitted for them, its table and test features.

    ``tested`` adds the test of devices against each other, and known inputs. With ``sensing``, each device measures the
    whole input. With ``sampled``, the options of ``sample_evidence``, the table has a sample of the subsets.
    """
    num_parts = num_parts or num_devices
    rng = np.random.default_rng(1)
    weights = [rng.normal(0, 0.01, (int(np.prod(shape)), width)).astype(np.float32) for _ in range(num_devices)]

    def features(inputs: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        flat = inputs.reshape(len(inputs), -1).astype(np.float32)
        return [np.maximum(flat @ w, 0) for w in weights]

    fit_inputs, fit_labels = toy_data(2000, 2, shape)
    sums = gram(np.concatenate(features(fit_inputs), axis=1), 8.0 * np.eye(CLASSES)[fit_labels])
    head = RidgePerSet(*sums, ridge=1e-4, widths=[width] * num_devices)
    inputs, labels = toy_data(200, 3, shape)
    recorded = features(inputs)
    laws = report_laws([DEFAULT_P_FAIL] * num_devices)
    evidence: AnyEvidence = (
        enumerate_evidence(head, recorded, labels)
        if sampled is None
        else sample_evidence(head, recorded, labels, laws, **sampled)
    )
    further: dict[str, dict[str, NDArray[Any]]] = {}
    spec = InputSpec(shape, "uint8", (127.0,) * shape[0], (70.0,) * shape[0])
    if tested:
        known, test = (
            draw_inputs(spec, 0),
            fit_consistency(head, features(fit_inputs), features(toy_data(500, 4, shape)[0])),
        )
        assert test is not None
        further[CONSISTENCY] = test.to_arrays()
        further[KNOWN] = {"inputs": known, **{f"device_{i}": f for i, f in enumerate(features(known))}}
    students = tuple(
        StudentEntry(i, i % num_parts, f"students/student-{i}.onnx", "", 64 * width, 64 * width, 0, width)
        for i in range(num_devices)
    )
    manifest = Manifest(
        experiment="toy",
        input=spec,
        classes=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        parts=tuple(tuple(range(j * width, (j + 1) * width)) for j in range(num_parts)),
        students=students,
        files={},
        teacher={"model": "prototypes", "params": 640, "macs": 640, "accuracy": 1.0},
        data={"name": "toy", "split": "test", "samples": len(labels), "fingerprint": "0" * 64},
        provenance={"code_version": "test"},
        replicas=tuple(tuple(i for i in range(num_devices) if i % num_parts == j) for j in range(num_parts)),
        sensing=sensing,
    )
    return write_bundle(
        path,
        manifest,
        {i: linear_student(w, shape) for i, w in enumerate(weights)},
        {
            "fusion.npz": head.to_arrays(),
            **evidence_arrays(evidence, np.ones(len(labels), dtype=bool)),
            "features.npz": {"labels": labels, **{f"device_{i}": f for i, f in enumerate(recorded)}},
            **further,
        },
    )
