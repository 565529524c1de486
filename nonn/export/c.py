"""Students as portable C: no heap, no library but libm, weights as constants, activations in static buffers.

A student in 8 bits is translated by ``integer`` if that can. emx-onnx-cgen translates all others, for one sample at a
time: ONNX Runtime first turns 8-bit networks into integer convolutions for it, and activations share memory afterwards
(``arena``). ``interface`` adds functions for programs, and identifies the student. The same file runs on a
microcontroller (devices/c/main.c) and, built as a shared object, in ``nonn-device serve --runtime c``.

Limits: not reentrant, since buffers are static; a batch runs one sample after another.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from typing import Any

from nonn.bundle.features import FeatureCode
from nonn.errors import BundleError, MissingExtraError
from nonn.export.arena import UnexpectedCodeError, share_buffers
from nonn.export.interface import header, interface
from nonn.export.onnx_file import folded, slim
from nonn.telemetry.printable import printable

__all__ = ["CSource", "generate_c"]

_ENTRY = "student"
# Names and attributes of a network are in comments of the generated code; without * none can end its comment.
_TEXT = re.compile(r"[\w .:;,/@+=()\[\]<>-]*", re.ASCII)


@dataclass(frozen=True)
class CSource:
    """A student in C.

    Attributes:
        source: student.c.
        header: student.h.
        arena_bytes: static memory of the activations.
        buffer_bytes: of a sample and its features, which the caller holds.
    """

    source: str
    header: str
    arena_bytes: int
    buffer_bytes: int


def generate_c(data: bytes, title: str, code: FeatureCode | None = None, *, cmsis_nn: bool = False) -> CSource:
    """Translates a student.

    Args:
        data: its ONNX file, float or 8 bits.
        title: name of the student, for a comment and messages.
        code: of its features; if it is int8, a function that encodes them too.
        cmsis_nn: call CMSIS-NN for convolutions (``nonn.export.cmsis_nn``).

    Raises:
        BundleError: a dimension other than the batch is variable, an operator cannot be translated, or a name could be
            code.
        MissingExtraError: emx-onnx-cgen is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as exc:
        raise MissingExtraError("onnx", extra="c") from exc
    from nonn.export.integer import UntranslatableError, integer_c

    model = onnx.load_from_string(data)
    _check_texts(model, title)
    del model.graph.value_info[:]  # inner shapes depend on the batch, fixed below
    (given,), (made,) = model.graph.input, model.graph.output
    for value in (given, made):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (given, made)]
    if not all(map(all, shapes)):
        raise BundleError(f"{title}: only the batch may vary, but the shapes are {shapes} (0 is any size)")
    try:
        source, arena_bytes = integer_c(model, _ENTRY, cmsis_nn=cmsis_nn)
        call, bytes_call = f"{_ENTRY}(input, features);", f"{_ENTRY}_bytes(input, features);"
    except UntranslatableError as exc:
        if cmsis_nn:
            raise BundleError(f"{title}: cannot use CMSIS-NN ({exc}); export without --cmsis-nn") from exc
        source, arena_bytes = _generated(model, title)
        dims = ["".join(f"[{size}]" for size in shape[1:]) for shape in shapes]
        call, bytes_call = f"{_ENTRY}((const float (*){dims[0]})input, (float (*){dims[1]})features);", ""
    declared = header(
        title,
        shapes[0][1:],
        prod(shapes[1]),
        hashlib.sha256(data).hexdigest(),
        takes_bytes=bool(bytes_call),
        code=code,
    )
    return CSource(source + interface(call, bytes_call, code), declared, arena_bytes, 4 * sum(map(prod, shapes)))


def _check_texts(message: Any, title: str) -> None:
    """Refuses texts that could be C code; descriptions and notes of exporters are removed instead."""
    for name in {"doc_string", "metadata_props"}.intersection(message.DESCRIPTOR.fields_by_name):
        message.ClearField(name)
    for field, value in message.ListFields():
        for each in value if field.is_repeated else (value,):
            if field.message_type is not None:
                _check_texts(each, title)
                continue
            if field.name == "raw_data" or not isinstance(each, str | bytes):
                break
            text = each if isinstance(each, str) else each.decode(errors="replace")
            if not _TEXT.fullmatch(text):
                raise BundleError(
                    f"{title}: {field.name} {printable(text, 80)!r} in its ONNX file could be code in C; export the "
                    "student again with names of letters and digits"
                )


def _generated(model: Any, title: str) -> tuple[str, int]:
    """Code of emx-onnx-cgen, and the bytes of its arenas."""
    try:
        from emx_onnx_cgen.errors import CompilerError
    except ModuleNotFoundError as exc:
        raise MissingExtraError(exc.name or "emx_onnx_cgen", extra="c") from exc
    try:
        code = _compiler().compile(_integer(model) if _is_quantised(model) else model)
    except CompilerError as exc:
        raise BundleError(f"{title}: cannot be translated to C ({exc}); serve it with ONNX Runtime") from exc
    try:
        code, arena_bytes = share_buffers(code, _ENTRY)
    except UnexpectedCodeError as exc:
        raise BundleError(
            f"{title}: emx-onnx-cgen {version('emx-onnx-cgen')} writes C that nonn cannot read ({exc}); "
            "install emx-onnx-cgen 1.4, or serve the student with ONNX Runtime"
        ) from exc
    return code, arena_bytes


@functools.cache
def _compiler() -> Any:
    """The compiler of emx-onnx-cgen. Each new one parses 169 templates, four fifths of the time of a student."""
    from emx_onnx_cgen.compiler import Compiler, CompilerOptions

    return Compiler(CompilerOptions(model_name=_ENTRY, large_temp_threshold_bytes=0, large_weight_threshold=0))


def _is_quantised(model: Any) -> bool:
    return any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def _integer(model: Any) -> Any:
    """The 8-bit network with integer convolutions; dequantising would need the weights as floats in RAM."""
    import onnx

    integer = onnx.load_from_string(slim(onnx.load_from_string(folded(model.SerializeToString(), integer=True))))
    _merge_equal(integer.graph)
    _record_shapes(integer)
    return integer


def _merge_equal(graph: Any) -> None:
    """Merges nodes that compute the same: the runtime converts a tensor back to floats once for each of its readers."""
    same: dict[str, str] = {}
    made: dict[tuple[Any, ...], str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        key = (node.op_type, *node.input, *sorted(a.SerializeToString() for a in node.attribute))
        if node.op_type == "DequantizeLinear" and key in made:
            same[node.output[0]] = made[key]
        else:
            made[key] = node.output[0]
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _record_shapes(model: Any) -> None:
    """Writes the types and shapes of inner tensors, which ONNX cannot infer for the runtime's own operators."""
    import onnx

    from nonn.export.memory import inner_tensors

    outputs = {value.name for value in model.graph.output}
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inner_tensors(model).items()
        if name not in outputs
    )
