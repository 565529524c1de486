"""Students in 8 bits: static quantisation, calibrated on training images, with equal answers on every processor.

Weights of convolutions and matrix products have one step per output channel, activations one per tensor, from the
extremes of the calibration images. The file is ordinary ONNX with QuantizeLinear and DequantizeLinear, so any runtime
reads it.

The bundle's accuracy table, measured on one kind of processor, must be valid for devices with another, so nothing that
is rounded may depend on the processor:

- Every tensor between the normalised input and the final mean is in 8 bits. Batch norms that follow a sum or a
  concatenation, which the runtime cannot fold, and means of windows become depthwise convolutions.
- The steps of activations are powers of two. What a runtime does in float between two roundings (gates, means of whole
  maps) is then exact, in any order and with or without fused multiplication.
- A multi-segment activation is a table of 256 values (``nonn.export.tables``).
- The terms of a sum, and the parts of a concatenation, share the step of the result: nothing is rounded there.
- The steps of weights have four significant bits: the product of a sum of products with the ratio of steps is exact in
  float for all sums below 2^20, and a microcontroller computes it with one integer multiplication.
- Activations are unsigned and weights use seven of their eight bits. Signed activations stay in float on x86 but not
  on Arm, and x86 without VNNI adds pairs of products in 16 bits, which saturate with full weights (onnxruntime.ai,
  "Quantize ONNX models", reduce_range).

Biases are corrected afterwards, so that rounding does not shift the mean of any channel. ``make arm`` compares with an
emulated Arm processor. Limits: a sigmoid is a table of 256 values that the runtime computes in float, so a value at a
rounding boundary could differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nonn.errors import BundleError
from nonn.export.onnx_file import folded, run_onnx, slim
from nonn.export.tables import Activation, find_activations, insert_tables

__all__ = ["TOLERANCE", "quantise"]

# Mean absolute error of the features relative to their mean absolute value: 0.02 is usual, 0.2 would be useless.
TOLERANCE = 0.1

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CLIPS = ("Relu", "Clip")  # a limit of the range of the node before them
_SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity")
_JOINS = ("Add", "Sum", "Concat")
_WEIGHT = 64  # largest weight: seven bits
_LARGEST_BIAS = 1 << 22  # so that a sum with it is exact in float32
_TRIED = 4  # steps of a channel's weights
_BATCH, _SAMPLE = 64, 64


def quantise(data: bytes, calibration: NDArray[Any]) -> bytes:
    """Quantises a student and checks it against the original.

    Args:
        data: the ONNX file, with input ``input`` and output ``features``.
        calibration: raw training inputs [n, …].

    Returns:
        The ONNX file in 8 bits, with the same input and output.

    Raises:
        BundleError: it has a node that cannot be in 8 bits, or its features differ by more than ``TOLERANCE`` on the
            calibration images.
    """
    inputs = calibration.astype(np.float32)
    model = onnx.load_from_string(folded(data))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    activations = find_activations(model.graph, constants)
    _to_convolutions(model, constants)
    _add_biases(model.graph, constants)
    sample = inputs[np.linspace(0, len(inputs) - 1, min(_SAMPLE, len(inputs))).astype(int)]
    inner = {name for activation in activations for name in activation.inner}
    names = [name for name in _quantised(model.graph, constants) if name not in inner]
    tables = [a for a in activations if {a.source, a.result} <= set(names)]
    _check_tables(model.graph, tables)
    steps = _steps(model, names, inputs, sample)
    products = [node.output[0] for node in model.graph.node if node.op_type in _PRODUCTS]
    means = dict(zip(products, map(_channel_means, _tensors(model, products)(sample)), strict=True))
    _insert(model.graph, constants, steps)
    insert_tables(model, tables, constants, steps)
    _correct_biases(model, means, sample)
    result = slim(model)
    expected = run_onnx(data, inputs)
    gap = float(np.abs(run_onnx(result, inputs) - expected).mean() / max(float(np.abs(expected).mean()), 1e-12))
    if not gap <= TOLERANCE:
        raise BundleError(
            f"the student in 8 bits differs by {100 * gap:.0f} % of its features (allowed {100 * TOLERANCE:.0f} %); "
            "train it longer, give more export.calibration images, or keep export.weights = 'float32'"
        )
    return result


def _check_tables(graph: Any, tables: Sequence[Activation]) -> None:
    """Raises BundleError if a node rounds down and is in no activation that becomes a table."""
    inner = {name for activation in tables for name in activation.inner}
    for node in graph.node:
        if node.op_type == "Floor" and node.output[0] not in inner:
            raise BundleError(
                f"the student has no 8 bits: node '{node.output[0]}' (Floor) is in no activation of one value, which "
                "could be a table; keep export.weights = 'float32', or choose another student.model"
            )


def _to_convolutions(model: Any, constants: dict[str, NDArray[Any]]) -> None:
    """Replaces batch norms and means of windows by depthwise convolutions, which every runtime rounds alike."""
    graph = model.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        source, target = node.input[0], node.output[0]
        if node.op_type == "BatchNormalization":
            scale, shift, mean, variance = (constants[name].astype(np.float64) for name in node.input[1:5])
            weight = scale / np.sqrt(variance + given.get("epsilon", 1e-5))
            bias, kernel, options = shift - mean * weight, [1] * (len(shapes[source]) - 2), {}
        elif node.op_type == "AveragePool" and not any(given.get("pads", ())):
            kernel, options = list(given["kernel_shape"]), {"strides": given["strides"]} if "strides" in given else {}
            weight = np.full(shapes[source][1], 1 / np.prod(kernel))
            bias = np.zeros(len(weight))
        else:
            continue
        full = np.broadcast_to(weight.reshape(-1, 1, *[1] * len(kernel)), (len(weight), 1, *kernel))
        named = {f"{target}_w": full.astype(np.float32), f"{target}_b": bias.astype(np.float32)}
        constants |= named
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in named.items())
        inputs = [source, *named]
        node.CopyFrom(helper.make_node("Conv", inputs, [target], group=len(weight), kernel_shape=kernel, **options))


def _add_biases(graph: Any, constants: dict[str, NDArray[Any]]) -> None:
    """Gives every convolution and Gemm without a bias one of zeros."""
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 2 and node.input[1] in constants:
            transposed = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
            name = f"{node.output[0]}_b"
            constants[name] = np.zeros(constants[node.input[1]].shape[0 if transposed else 1], np.float32)
            graph.initializer.append(numpy_helper.from_array(constants[name], name))
            node.input.append(name)


def _quantised(graph: Any, constants: Mapping[str, NDArray[Any]]) -> list[str]:
    """Names of the tensors that are rounded, in order of computation."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    found: dict[str, None] = {}
    inner: set[str] = set()  # computed from a product
    for node in graph.node:
        if node.op_type in _PRODUCTS:
            found[node.input[0]] = None
        if node.op_type not in _PRODUCTS and inner.isdisjoint(node.input):
            continue
        inner.update(node.output)
        for name in node.output:
            clipped = {reader.op_type for reader in readers.get(name, [])} <= set(_CLIPS) and name in readers
            is_mean = name in outputs and node.op_type not in _PRODUCTS
            if not (clipped or is_mean or node.op_type in _SHAPES):
                found[name] = None
    return [name for name in found if name not in constants]


def _steps(
    model: Any, names: Sequence[str], inputs: NDArray[np.float32], sample: NDArray[np.float32]
) -> dict[str, tuple[float, int]]:
    """Step and zero point of each tensor; ``inputs`` give the ranges, ``sample`` of them the errors."""
    run = _tensors(model, names)
    ranges = dict.fromkeys(names, (0.0, 0.0))
    for start in range(0, len(inputs), _BATCH):
        for name, array in zip(names, run(inputs[start : start + _BATCH]), strict=True):
            low, high = ranges[name]
            ranges[name] = min(low, float(array.min())), max(high, float(array.max()))
    arrays = dict(zip(names, run(sample), strict=True))
    exponents = {name: _exponent(arrays[name], *ranges[name]) for name in names}
    changed = True
    while changed:
        changed = False
        for node in model.graph.node:
            joined = [name for name in (*node.input, *node.output) if name in exponents]
            if node.op_type in _JOINS and joined:
                largest = max(exponents[name] for name in joined)
                changed |= any(exponents[name] != largest for name in joined)
                exponents |= dict.fromkeys(joined, largest)
    return {name: (2.0**exponent, _zero(exponent, *ranges[name])) for name, exponent in exponents.items()}


def _exponent(array: NDArray[np.float32], low: float, high: float) -> int:
    """Exponent of the step with the least squared error: one with which its range fits, or half of that."""
    fits = int(np.ceil(np.log2(max(high - low, 1e-30) / 255)))

    def error(exponent: int) -> float:
        scaled, zero = array * np.float32(2.0**-exponent), _zero(exponent, low, high)
        return float(np.square(np.rint(scaled).clip(-zero, 255 - zero) - scaled).sum()) * 4.0**exponent

    return min((fits, fits - 1), key=error)


def _zero(exponent: int, low: float, high: float) -> int:
    """The zero point that leaves as much of the range above and below as its extremes need, in proportion."""
    steps = max((high - low) / 2.0**exponent, 255.0)
    return round(255 * -low / 2.0**exponent / steps)


def _correct_biases(model: Any, means: Mapping[str, NDArray[Any]], sample: NDArray[np.float32]) -> None:
    """Moves the mean of every channel of a product back to where it is in float, one product after another.

    Source: Nagel et al. 2019, arXiv 1906.04721, section 4.2, with the means of data instead of those of batch norms.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS or len(node.input) < 3 or node.input[2] not in maker:
            continue
        bias, scale = maker[node.input[2]].input[:2]
        name = node.output[0]
        shift = means[name.removesuffix("_raw")] - _channel_means(_tensors(model, [name], optimise=True)(sample)[0])
        more = np.rint(shift / numpy_helper.to_array(stored[scale])).astype(np.int32)
        stored[bias].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored[bias]) + more, bias))


def _channel_means(array: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of each channel [C] of a batch [B, C, …]."""
    means: NDArray[np.float64] = array.mean(axis=(0, *range(2, array.ndim)), dtype=np.float64)
    return means


def _tensors(
    model: Any, names: Sequence[str], *, optimise: bool = False
) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """A function that computes these tensors of a network."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        arrays: list[NDArray[np.float32]] = session.run(list(names), {"input": batch})
        return arrays

    return run


def _insert(graph: Any, constants: Mapping[str, NDArray[Any]], steps: Mapping[str, tuple[float, int]]) -> None:
    """Rounds each of these tensors where it is made, and stores weights in 8 bits and biases in 32."""
    outputs = {value.name for value in graph.output}
    nodes: list[Any] = []

    def constant(name: str, array: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def rounded(name: str) -> None:
        """Adds the two nodes that round a tensor."""
        step, zero = steps[name]
        source = f"{name}_raw" if name in outputs else name
        scale = constant(f"{name}_scale", np.array(step, np.float32))
        point = constant(f"{name}_zero", np.array(zero, np.uint8))
        nodes.append(helper.make_node("QuantizeLinear", [source, scale, point], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", scale, point], [read(name)]))

    def read(name: str) -> str:
        return name if name in outputs or name not in steps else f"{name}_d"

    for value in graph.input:
        if value.name in steps:
            rounded(value.name)
    for number, node in enumerate(list(graph.node)):
        if node.op_type in _PRODUCTS and node.input[0] in steps and node.input[1] in constants:
            _store_weights(node, number, constants, steps[node.input[0]][0], nodes, constant)
        node.input[:] = [read(name) for name in node.input]
        made = [name for name in node.output if name in steps]
        node.output[:] = [f"{name}_raw" if name in steps and name in outputs else name for name in node.output]
        nodes.append(node)
        for name in made:
            rounded(name)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _store_weights(
    node: Any,
    number: int,
    constants: Mapping[str, NDArray[Any]],
    step: float,
    nodes: list[Any],
    constant: Callable[[str, NDArray[Any]], str],
) -> None:
    """Gives a product weights in 8 bits with a step for each output channel, and a bias in 32."""
    weight = constants[node.input[1]]
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    axis = 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed) else 1
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    bias = constants.get(node.input[2]) if len(node.input) > 2 else None
    least = np.zeros(len(channels)) if bias is None else np.abs(bias).reshape(-1) / (step * _LARGEST_BIAS)
    scales = _weight_scales(channels, least)
    along = scales.reshape(-1, *[1] * (weight.ndim - 1 - axis))
    stored = np.rint(weight / along).clip(-_WEIGHT, _WEIGHT).astype(np.int8)
    named = [
        constant(f"weight{number}", stored),
        constant(f"weight{number}_scale", scales.astype(np.float32)),
        constant(f"weight{number}_zero", np.zeros(len(scales), np.int8)),
    ]
    nodes.append(helper.make_node("DequantizeLinear", named, [f"weight{number}_d"], axis=axis))
    node.input[1] = f"weight{number}_d"
    if bias is not None:
        exact = np.rint(bias.reshape(-1) / (step * scales)).astype(np.int32)
        named = [
            constant(f"bias{number}", exact),
            constant(f"bias{number}_scale", (step * scales).astype(np.float32)),
            constant(f"bias{number}_zero", np.zeros(len(scales), np.int32)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", named, [f"bias{number}_d"], axis=0))
        node.input[2] = f"bias{number}_d"


def _weight_scales(channels: NDArray[Any], least: NDArray[Any]) -> NDArray[np.float64]:
    """Step of each channel [C] for its weights [C, n]: of the smallest steps allowed, the one with the least error."""
    wanted = np.maximum(np.maximum(np.abs(channels).max(axis=1) / _WEIGHT, least), 1e-30)
    power = 2.0 ** (np.floor(np.log2(wanted)) - 3)
    best, error = np.zeros(len(channels)), np.full(len(channels), np.inf)
    for more in range(_TRIED):
        digits = np.ceil(wanted / power) + more  # 8 to 16, four bits
        digits = np.where(digits > 16, 2 * np.ceil(digits / 2), digits)
        tried = digits * power
        found = ((np.rint(channels / tried[:, None]) * tried[:, None] - channels) ** 2).sum(axis=1)
        best, error = np.where(found < error, tried, best), np.minimum(found, error)
    return best
