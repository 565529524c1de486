"""Students in 8 bits as plain C that computes with integers only, for processors without an operating system.

It translates what ``nonn.export.quantise`` writes to calls of the functions in ``integer.c``: convolutions in 8 bits,
sums and concatenations whose terms share a step, tables of activations, and a mean at the end. All steps of
activations are powers of two and those of weights have four significant bits, so a sum of products is rounded with one
multiplication and one shift, to the same bits as in ONNX Runtime (below 2^20; larger sums are rounded by the runtime
itself, which computes in float).

Maps are stored with channels last: the values below a row of a kernel are then one run of memory, and border and
interior differ only in where the run starts and ends. Four output channels are summed at a time, so each value is
loaded once for them. Maps share one static arena.

Stacked binary filters stay selectors and signs (``nonn.export.stacked``).

Limits: other operators (gates) raise ``UntranslatableError``; ``nonn.export.c`` then uses
emx-onnx-cgen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nonn.export.places import places
from nonn.export.stacked import Stack, find_stack

__all__ = ["UntranslatableError", "integer_c"]

_RUNTIME = "\n" + Path(__file__).with_name("integer.c").read_text()


class UntranslatableError(Exception):
    """The student has something that this module does not translate."""


@dataclass
class _Map:
    """A tensor in 8 bits: [height, width, channels], and its place in the arena."""

    height: int
    width: int
    channels: int
    step: float
    zero: int
    first: int
    last: int = -1
    offset: int = -1

    @property
    def size(self) -> int:
        return self.height * self.width * self.channels


@dataclass
class _Program:
    """What has been translated so far."""

    constants: list[str] = field(default_factory=list)
    calls: list[tuple[str, list[_Map]]] = field(default_factory=list)  # a template with {0}, {1} … and its maps

    def call(self, text: str, *maps: _Map) -> None:
        for used in maps:
            used.last = len(self.calls)
        self.calls.append((text, list(maps)))

    def array(self, kind: str, values: NDArray[Any]) -> str:
        name = f"nonn_constant_{len(self.constants)}"
        numbers = ",".join(map(str, values.reshape(-1).tolist()))
        self.constants.append(f"static const {kind} {name}[{values.size}] = {{{numbers}}};")
        return name


def integer_c(model: Any, entry: str, *, cmsis_nn: bool = False) -> tuple[str, int]:
    """Translates a student.

    Args:
        model: a ModelProto from ``quantise``, for one sample.
        entry: name of the function to write, ``void entry(const float *input, float *features)``; the function
            ``entry_bytes`` takes bytes.
        cmsis_nn: convolutions are those of CMSIS-NN, whose headers and sources are to be compiled with the code.

    Returns:
        The code, and the bytes of the arena and of scratch memory.

    Raises:
        UntranslatableError: an operator or its form is not supported.
    """
    return _Translation(model, 128 if cmsis_nn else 0).write(entry)


class _Translation:
    """Follows the nodes of a network from its input to its features.

    Args:
        model: the network.
        less: what maps hold is less than their values by this: 128 for CMSIS-NN, whose values are signed; else 0.
    """

    def __init__(self, model: Any, less: int) -> None:
        self._graph, self._less = model.graph, less
        self._scratch = self._widest = 0  # of CMSIS-NN: values of 16 bits, and channels of a result
        self._stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._maps: dict[str, _Map] = {}
        self._weights: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._program = _Program()
        self._composed = 0  # bytes of four stacked filters

    def write(self, entry: str) -> tuple[str, int]:
        given = [dim.dim_value for dim in self._graph.input[0].type.tensor_type.shape.dim][1:]
        if len(given) not in (2, 3):
            raise UntranslatableError(f"input of {len(given)} axes")
        channels, *spatial = given
        height, width = [1, *spatial][-2:]
        normalise, name = self._normalise(channels)
        start = self._rounded(name, height, width, channels)
        pixels = height * width
        for node in self._graph.node:
            if node.op_type in ("Sub", "Div", "QuantizeLinear", "Relu"):
                continue  # followed from where they are read
            if node.op_type == "DequantizeLinear":
                self._dequantise(node)
            elif node.op_type == "Conv":
                self._convolution(node)
            elif node.op_type == "Add":
                self._sum(node)
            elif node.op_type == "Concat":
                self._concatenation(node)
            elif node.op_type == "Cast":  # the index of a table
                self._maps[node.output[0]] = self._map(node.input[0])
            elif node.op_type == "Gather" and node.input[0] in self._stored:
                self._table(node)
            elif node.op_type == "Reshape" and self._reads(node.output[0], "ReduceMean"):
                self._maps[node.output[0]] = self._map(node.input[0])
            elif node.op_type == "ReduceMean" and node.output[0] == self._graph.output[0].name:
                self._mean(self._map(node.input[0]))
            else:
                raise UntranslatableError(f"the operator {node.op_type}")
        if not self._program.calls or "nonn_mean" not in self._program.calls[-1][0]:
            raise UntranslatableError("no mean at the end")
        size = self._place()
        at = "nonn_arena + {}".format
        first = f"nonn_arena + {start.offset}"
        lines = [text.format(*(at(one.offset) for one in maps)) for text, maps in self._program.calls]
        body = "\n    ".join(lines)
        loops = (
            f"    for (int32_t pixel = 0; pixel < {pixels}; ++pixel) {{\n"
            f"        for (int32_t channel = 0; channel < {channels}; ++channel) {{\n"
            f"            ({first})[pixel * {channels} + channel] =\n"
            f"                nonn_input(input[channel * {pixels} + pixel], channel);\n        }}\n    }}\n"
        )
        functions = "".join(
            f"\nstatic void {name}(const {kind} *input, float *features) {{\n{loops}    {body}\n}}\n"
            for name, kind in ((entry, "float"), (f"{entry}_bytes", "uint8_t"))
        )
        constants = "\n".join(self._program.constants)
        sizes = f"#define NONN_SCRATCH {self._scratch}\n#define NONN_WIDEST {self._widest}\n"
        head = f"#define NONN_CMSIS_NN 1\n{sizes}" if self._less else ""
        head += f"#define NONN_STACKED {self._composed}\n" if self._composed else ""
        arena = f"static nonn_value nonn_arena[{size}];\n"
        static = size + 2 * self._scratch + 8 * self._widest + self._composed
        return f"{head}{_RUNTIME}\n{constants}\n{normalise}\n{arena}{functions}", static

    def _normalise(self, channels: int) -> tuple[str, str]:
        """The function that rounds an input value, and the name of the tensor that it computes."""
        name, values = self._graph.input[0].name, []
        for kind, neutral in (("Sub", 0.0), ("Div", 1.0)):
            reader = self._reads(name, kind)
            if reader is None:
                raise UntranslatableError("no normalisation at the start")
            found = self._stored.get(reader.input[1], np.array(neutral)).reshape(-1)
            values.append(np.broadcast_to(found, channels))
            name = reader.output[0]
        rounding = self._reads(name, "QuantizeLinear")
        if rounding is None:
            raise UntranslatableError("an input that is not rounded")
        step, zero = (self._stored[key] for key in rounding.input[1:3])
        mean, std = ("{" + ",".join(f"{float(value)!r}f" for value in row) + "}" for row in values)
        return (
            "static nonn_value nonn_input(float value, int32_t channel) {\n"
            f"    static const float mean[{channels}] = {mean}, std[{channels}] = {std};\n"
            f"    const float steps = (value - mean[channel]) / std[channel] * {1 / float(step)!r}f;\n"
            f"    const float scaled = rintf(steps) + {int(zero)}.0f;\n"
            "    return (nonn_value)((scaled < 0.0f ? 0.0f : scaled > 255.0f ? 255.0f : scaled) + NONN_LOW);\n}\n",
            name,
        )

    def _reads(self, name: str, kind: str) -> Any:
        """The only reader of a tensor, if it is of this kind."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None

    def _map(self, name: str) -> _Map:
        if name not in self._maps:
            raise UntranslatableError(f"a tensor in float, {name}")
        return self._maps[name]

    def _rounded(self, name: str, height: int, width: int, channels: int) -> _Map:
        """The map of a tensor that is rounded, with or without a ReLU before."""
        clip = self._reads(name, "Relu")
        rounding = self._reads(clip.output[0] if clip else name, "QuantizeLinear")
        if rounding is None:
            raise UntranslatableError(f"a tensor that is not rounded, {name}")
        step, zero = (self._stored[key] for key in rounding.input[1:3])
        if clip and int(zero):
            raise UntranslatableError("a ReLU whose range has negative values")
        made = _Map(height, width, channels, float(step), int(zero), first=len(self._program.calls))
        self._maps[rounding.output[0]] = made
        return made

    def _dequantise(self, node: Any) -> None:
        name = node.input[0]
        if name in self._stored:
            self._weights[node.output[0]] = self._stored[name], self._stored[node.input[1]]
        else:
            self._maps[node.output[0]] = self._map(name)

    def _convolution(self, node: Any) -> None:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if len(node.input) < 3 or not self._weights.keys() >= set(node.input[1:]):
            raise UntranslatableError("a convolution without weights and bias in integers")
        source, (weight, scale) = self._map(node.input[0]), self._weights[node.input[1]]
        bias, _ = self._weights[node.input[2]]
        weight = weight.reshape(*weight.shape[:2], *[1] * (4 - weight.ndim), *weight.shape[2:])
        outputs, inputs, kernel_y, kernel_x = weight.shape
        flat = weight.ndim == 4 and len(given.get("kernel_shape", (1, 1))) == 1
        group, stride, pads = given.get("group", 1), given.get("strides"), given.get("pads")
        stride = [*([1] if flat else []), *(stride or [1] * (1 if flat else 2))]
        pads = [int(pad) for pad in (pads or [0] * (2 if flat else 4))]
        pads = [0, pads[0], 0, pads[1]] if flat else pads
        depthwise = group == source.channels == outputs and inputs == 1
        dilated = any(step != 1 for step in given.get("dilations", ()))
        if dilated or given.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise UntranslatableError("a dilated or automatically padded convolution")
        rows = (source.height + pads[0] + pads[2] - kernel_y) // stride[0] + 1
        columns = (source.width + pads[1] + pads[3] - kernel_x) // stride[1] + 1
        made = self._rounded(node.output[0], rows, columns, outputs)
        factor, shift = _rescaling(scale.astype(np.float64) * source.step / made.step)
        padding = 0 if group > 1 or depthwise or self._less else -outputs % 4
        stack = None if group > 1 or depthwise or self._less else find_stack(weight)
        packed = None
        if stack:
            self._composed = max(self._composed, 4 * weight[0].size)
        elif depthwise:
            packed = weight.reshape(outputs, kernel_y, kernel_x).transpose(1, 2, 0)
        elif group > 1:
            packed = weight.transpose(0, 2, 3, 1)
        elif self._less:
            packed = weight.transpose(0, 2, 3, 1)
            self._scratch = max(self._scratch, 2 * (packed[0].size + -packed[0].size % 8))
            self._widest = max(self._widest, outputs)
        else:
            full = np.pad(weight, ((0, padding), (0, 0), (0, 0), (0, 0)))
            packed = full.reshape(-1, 4, inputs, kernel_y, kernel_x).transpose(0, 3, 4, 2, 1)
        arrays = [
            "0" if packed is None else self._program.array("int8_t", packed),
            self._program.array("int32_t", np.pad(bias, (0, padding))),
            self._program.array("uint8_t", factor),
            self._program.array("int8_t", shift),
        ]
        numbers = [source.height, source.width, source.channels, rows, columns, outputs, kernel_y, kernel_x, *stride]
        numbers += [pads[0], pads[1], source.zero - self._less, made.zero]
        name = f"nonn_layer_{len(self._program.constants)}"
        values = ", ".join([*map(str, numbers), *arrays])
        self._program.constants.append(f"static const nonn_layer {name} = {{{values}}};")
        function = "depthwise" if depthwise else "grouped" if group > 1 else "stacked" if stack else "conv"
        more = f", {group}" if function == "grouped" else f", &{self._stack(stack)}" if stack else ""
        self._program.call(f"nonn_{function}({{0}}, {{1}}, &{name}{more});", source, made)

    def _stack(self, stack: Stack) -> str:
        """The name of the constant with the filters of a convolution."""
        kinds = (("uint8_t", stack.bank), ("uint8_t", stack.chosen), ("int8_t", stack.scale))
        arrays = ", ".join(self._program.array(kind, values) for kind, values in kinds)
        name = f"nonn_stack_{len(self._program.constants)}"
        numbers = f"{stack.depth}, {stack.bank.shape[1]}"
        self._program.constants.append(f"static const nonn_stack {name} = {{{numbers}, {arrays}}};")
        return name

    def _sum(self, node: Any) -> None:
        one, other = (self._map(name) for name in node.input)
        made = self._rounded(node.output[0], one.height, one.width, one.channels)
        if not one.step == other.step == made.step or one.size != other.size:
            raise UntranslatableError("a sum of maps with other steps or sizes")
        more = made.zero - one.zero - other.zero + 2 * self._less
        self._program.call(f"nonn_add({{0}}, {{1}}, {{2}}, {made.size}, {more});", one, other, made)

    def _concatenation(self, node: Any) -> None:
        parts = [self._map(name) for name in node.input]
        whole = sum(part.channels for part in parts)
        made = self._rounded(node.output[0], parts[0].height, parts[0].width, whole)
        start = 0
        for part in parts:
            if part.step != made.step:
                raise UntranslatableError("a concatenation of maps with other steps")
            pixels, more = part.height * part.width, made.zero - part.zero + self._less
            text = f"nonn_part({{0}}, {{1}} + {start}, {pixels}, {part.channels}, {whole}, {more});"
            self._program.call(text, part, made)
            start += part.channels

    def _table(self, node: Any) -> None:
        """An activation that is a table of the 256 values of its input."""
        source, values = self._map(node.input[1]), self._stored[node.input[0]]
        reader = self._reads(node.output[0], "DequantizeLinear")
        if reader is None or values.shape != (256,) or values.dtype != np.uint8:
            raise UntranslatableError("a table of other values")
        step, zero = (self._stored[key] for key in reader.input[1:3])
        size = (source.height, source.width, source.channels)
        made = _Map(*size, float(step), int(zero), first=len(self._program.calls))
        self._maps[node.output[0]] = made
        table = self._program.array("uint8_t", values)
        self._program.call(f"nonn_table({{0}}, {{1}}, {table}, {source.size});", source, made)

    def _mean(self, source: _Map) -> None:
        pixels = source.height * source.width
        text = f"nonn_mean({{0}}, features, {pixels}, {source.channels}, {source.zero - self._less}, {source.step!r}f);"
        self._program.call(text, source)

    def _place(self) -> int:
        """Gives every map a place in the arena; returns the bytes of all."""
        maps = list({id(one): one for _, used in self._program.calls for one in used}.values())
        found = places([one.size for one in maps], [(one.first, one.last) for one in maps])
        for one, offset in zip(maps, found, strict=True):
            one.offset = offset
        return max(one.offset + one.size for one in maps)


def _rescaling(ratios: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Factor and shift of each ratio: factor / 2^shift.

    Raises:
        UntranslatableError: a ratio has more than four significant bits.
    """
    mantissa, exponent = np.frexp(ratios)
    factor = mantissa * 16
    if (factor != np.rint(factor)).any() or (exponent < -26).any() or (exponent > 12).any():
        raise UntranslatableError("steps of another quantiser")
    return factor.astype(np.uint8), (4 - exponent).astype(np.int8)
