"""Checks that an ONNX file has all of its data in itself.

A tensor of an ONNX file may name another file for its values. The hash of the bundle does not cover that
file, so a change of it changes the features unnoticed. ONNX Runtime before 1.24 also reads any file of the machine this
way. Bundles have no use for it, so a student with such a tensor is refused wherever a bundle is loaded.

The file is walked rather than parsed: the weights, nearly all of it, are skipped, and a device needs no package for it
(developers.google.com/protocol-buffers, Encoding). What cannot be walked is refused too.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from nonn.errors import BundleError

__all__ = ["check_self_contained"]

# Message → the fields that lead to tensors; numbers of onnx.proto.
PATHS = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of TensorProto; the location is 0 for values in the tensor itself
_FIXED = {1: 8, 5: 4}  # bytes of the wire types of fixed length
_VARINT, _BYTES = 0, 2


def check_self_contained(path: Path) -> None:
    """Checks one ONNX file.

    Raises:
        BundleError: a tensor has its values in another file, or the file is not ONNX.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                external = _external(data)
        except (ValueError, IndexError) as exc:  # ValueError: an empty file, too
            raise BundleError(f"{path}: not an ONNX file ({exc}); build the bundle again") from exc
    if external:
        raise BundleError(
            f"{path}: a tensor has its values in another file, which the hash of the bundle does not cover; export the "
            "student with all values in one file (torch.onnx.export: external_data=False), and build the bundle again"
        )


def _external(data: mmap.mmap) -> bool:
    """Whether a tensor of a model names another file."""
    waiting = [("ModelProto", 0, len(data))]
    while waiting:
        message, start, end = waiting.pop()
        for number, wire, first, last in _fields(data, start, end):
            if message == "TensorProto" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and first)):
                return True
            inner = PATHS[message].get(number)
            if inner is not None and wire == _BYTES:
                waiting.append((inner, first, last))
    return False


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type and place of each field of a message; of a varint, its value in place of the first byte."""
    while start < end:
        key, start = _varint(data, start)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, start = _varint(data, start)
            yield number, wire, value, start
            continue
        if wire == _BYTES:
            length, start = _varint(data, start)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if not number or start + length > end:
            raise ValueError("a field is longer than its message")
        yield number, wire, start, start + length
        start += length


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """A number, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError("a number of more than ten bytes")
