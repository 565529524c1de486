"""A student in the experiment's precision: the weights that its device runs and the features that it sends.

All later measurements, accuracy tables and recorded features, include both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.features import FeatureCode
from nonn.config import ExportConfig
from nonn.errors import BundleError
from nonn.export.onnx_file import run_onnx
from nonn.reliability.sampled_evidence import AnyEvidence

__all__ = ["Deployed", "calibration_sample", "deploy", "float_reference"]


@dataclass(frozen=True)
class Deployed:
    """One student, ready for its device.

    Attributes:
        data: the ONNX file.
        suffix: of its file name.
        weights: dtype of its weights.
        code: code of its features.
        original: the ONNX file in float.
    """

    data: bytes
    suffix: str
    weights: str
    code: FeatureCode
    original: bytes

    @property
    def lossy(self) -> bool:
        """Whether its answers differ from those in float."""
        return (self.weights, self.code.dtype) != ("float32", "float32")

    def entry(self) -> dict[str, Any]:
        """Its fields in the manifest."""
        return {
            "weights": self.weights,
            "dtype": self.code.dtype,
            "scale": self.code.scale,
            "low": self.code.low,
        }

    def features(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Features [n, d] that the aggregator receives for raw inputs [n, …]."""
        return self.code.roundtrip(run_onnx(self.data, inputs))


def calibration_sample(inputs: NDArray[Any], count: int, seed: int) -> NDArray[Any]:
    """Training inputs for calibration, drawn without replacement; all if there are fewer than ``count``."""
    chosen = np.random.default_rng([seed, 7]).permutation(len(inputs))[:count]
    return inputs[np.sort(chosen)]


def deploy(config: ExportConfig, device: int, data: bytes, calibration: NDArray[Any]) -> Deployed:
    """Converts a student to the configured precision.

    Args:
        config: the precision of weights and features.
        device: number of the device, for messages.
        data: the student's ONNX file in float.
        calibration: raw training inputs [n, …].

    Raises:
        BundleError: quantisation changes the student's features too much.
    """
    served = data
    if config.weights == "int8":
        from nonn.export.quantise import quantise

        try:
            served = quantise(data, calibration)
        except BundleError as exc:
            raise BundleError(f"device {device}: {exc}") from exc
    code = FeatureCode.fit(config.features, run_onnx(served, calibration))
    suffix = ".int8.onnx" if config.weights == "int8" else ".onnx"
    return Deployed(served, suffix, config.weights, code, data)


def float_reference(original: AnyEvidence, served: AnyEvidence, deployed: Sequence[Deployed]) -> Mapping[str, Any]:
    """Size and accuracy of the same students in float, for the manifest's provenance.

    Args:
        original: accuracy of every subset of devices with float weights and features.
        served: the same with the weights and features of the bundle.
        deployed: the students [N].
    """
    table = original.table
    n = table.num_devices
    alone = np.zeros((n, len(table.correct)))
    alone[np.arange(n), [int(table.place(1 << i) or 0) for i in range(n)]] = 1
    return {
        "model_bytes": [len(student.original) for student in deployed],
        "accuracy_by_failures": [
            {"failed": row.failed, "mean": row.mean, "worst": row.worst} for row in table.by_failures()
        ],
        "accuracy_alone": [table.stated(1 << i).accuracy for i in range(len(deployed))],
        "drop_intervals": [list(ends) for ends in original.less(served, original.level_weights())],
        "drop_alone_intervals": [list(ends) for ends in original.less(served, alone)],
    }
