"""Students in 8 bits: static quantisation with ONNX Runtime, calibrated on training images.

Weights of convolutions and matrix products have one step per output channel, activations one per tensor, from the
extremes of the calibration images. The file is ordinary ONNX with QuantizeLinear and DequantizeLinear, so any runtime
reads it.

Activations are unsigned and weights use seven of their eight bits, both for equal answers on every processor: signed
activations stay in float on x86 but not on Arm, and x86 without VNNI adds pairs of products in 16 bits, which saturate
with full weights (onnxruntime.ai, "Quantize ONNX models", reduce_range). The bundle's accuracy table, measured on one
kind of processor, must be valid for devices with another.

Normalisation, sums, gates, means, and batch norms that follow a sum or a concatenation stay in float. That is a few
hundredths of the work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from nonn.errors import BundleError
from nonn.export.onnx_file import folded, quiet, run_onnx, slim

__all__ = ["TOLERANCE", "quantise"]

# Mean absolute error of the features relative to their mean absolute value: 0.02 is usual, 0.2 would be useless.
TOLERANCE = 0.1

# A ReLU after a quantised layer is a limit of its output range.
_QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu")
_BATCH = 64


def quantise(data: bytes, calibration: NDArray[Any]) -> bytes:
    """Quantises a student and checks it against the original.

    Args:
        data: the ONNX file, with input ``input`` and output ``features``.
        calibration: raw training inputs [n, …].

    Returns:
        The ONNX file in 8 bits, with the same input and output.

    Raises:
        BundleError: its features differ by more than ``TOLERANCE`` on the calibration images.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    inputs = calibration.astype(np.float32)
    with quiet(None), tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            onnx.load_from_string(folded(data)),
            str(target),
            _Calibration(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(str(target))
    _float_sums(model.graph)
    result = slim(model)
    expected = run_onnx(data, inputs)
    gap = float(np.abs(run_onnx(result, inputs) - expected).mean() / max(float(np.abs(expected).mean()), 1e-12))
    if not gap <= TOLERANCE:
        raise BundleError(
            f"the student in 8 bits differs by {100 * gap:.0f} % of its features (allowed {100 * TOLERANCE:.0f} %); "
            "train it longer, give more export.calibration images, or keep export.weights = 'float32'"
        )
    return result


def _float_sums(graph: Any) -> None:
    """Keeps sums in float: their inputs are quantised only where a convolution made them.

    ``Sum`` instead of ``Add``, because a runtime turns an ``Add`` between quantised tensors into an addition in 8 bits,
    whose rounding depends on the processor.
    """
    maker = {name: node for node in graph.node for name in node.output}

    def unrounded(name: str) -> str:
        back = maker.get(name)
        if back is None or back.op_type != "DequantizeLinear":
            return name
        rounded = maker.get(back.input[0])
        if rounded is None or rounded.op_type != "QuantizeLinear":
            return name
        source = maker.get(rounded.input[0])
        return name if source is None or source.op_type in _QUANTISED else str(rounded.input[0])

    for node in graph.node:
        if node.op_type == "Add":
            node.op_type = "Sum"
            node.input[:] = [unrounded(name) for name in node.input]


class _Calibration:
    """Passes training images to the quantiser in batches."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(np.array_split(inputs, -(-len(inputs) // _BATCH)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        return ({"input": batch} for batch in self._batches)
