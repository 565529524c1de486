"""The REST form of the Open Inference Protocol: bodies ↔ the same requests and answers that gRPC has.

A body is JSON, or JSON followed by the raw bytes of tensors (the binary tensor extension of KServe and Triton, whose
header ``Inference-Header-Content-Length`` is the length of the JSON). Values of JSON become raw contents, and the
checks behind are those of ``nonn.rpc.wire``. Errors name the field, such as ``inputs[0].data``.

Limit: nothing else in the process runs while JSON is parsed, not even in another thread, so it may have
``MAX_JSON_BYTES``. Larger inputs are sent raw.

Reference: kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import grpc
import numpy as np

from nonn.errors import InputError
from nonn.rpc.codec import Request, choose_outputs
from nonn.rpc.endpoint import InferenceResult
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import DTYPES, MAX_DIMS, Array, Parameter, Status, little_endian, write_parameters
from nonn.telemetry.printable import printable

__all__ = ["HTTP_STATUS", "MAX_JSON_BYTES", "RestRequest", "read_request", "to_error", "write_metadata"]

MAX_JSON_BYTES = 1024 * 1024
ERROR_LIMIT = 2000  # characters

# As google.rpc.code maps them, except that another bundle is a conflict and not a bad request.
HTTP_STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_KINDS: Mapping[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
}
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class RestRequest:
    """A request and the form of its answer.

    Attributes:
        request: as gRPC has it.
        binary: whether outputs are raw unless ``outputs`` says otherwise.
        outputs: whether an output is raw, by name, where the request says so.
    """

    request: Request
    binary: bool
    outputs: Mapping[str, bool]

    def write(self, model: str, version: str, result: InferenceResult) -> tuple[bytes, int | None]:
        """The body of the response, and the length of its JSON if raw values follow.

        Raises:
            InputError: the request names an unknown output.
        """
        outputs, raws = [], []
        for name, array in choose_outputs(self.request, result.outputs).items():
            array = little_endian(array)
            output: dict[str, Any] = {"name": name, "datatype": _DATATYPES[array.dtype], "shape": list(array.shape)}
            if self.outputs.get(name, self.binary):
                raws.append(array.tobytes())
                output["parameters"] = {"binary_data_size": len(raws[-1])}
            else:
                output["data"] = array.ravel().tolist()
            outputs.append(output)
        answer: dict[str, Any] = {"model_name": model, "model_version": version}
        if self.request.id:
            answer["id"] = self.request.id
        answer |= {"parameters": dict(result.parameters), "outputs": outputs}
        body = json.dumps(answer, allow_nan=False).encode()
        return b"".join([body, *raws]), len(body) if raws else None


_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


def read_request(body: bytes, json_bytes: int | None, model: str, version: str) -> RestRequest:
    """Reads a body.

    Args:
        body: the whole body.
        json_bytes: length of the JSON at its start; None if it is all JSON.
        model: name of the model, from the path.
        version: version of the model, from the path; empty for any.

    Raises:
        InputError: it is no request of the protocol; the message names the field.
    """
    view = memoryview(body)
    length = len(body) if json_bytes is None else json_bytes
    if length > len(body):
        raise InputError(f"Inference-Header-Content-Length: {length}, but the body has only {len(body)} bytes")
    if length > MAX_JSON_BYTES:
        raise InputError(f"{length} bytes of JSON; the limit is {MAX_JSON_BYTES}, so send values raw: binary_data_size")
    tree = _tree(bytes(view[:length]))
    message = pb.ModelInferRequest(
        model_name=_text(model, "the model"),
        model_version=_text(version, "the version"),
        id=_text(tree.get("id", ""), "id"),
    )
    left = view[length:]
    for index, tensor in enumerate(_objects(tree, "inputs", required=True)):
        left = _add_input(message, tensor, f"inputs[{index}]", left)
    if len(left):
        raise InputError(f"{len(left)} raw bytes follow the JSON that no input has as its binary_data_size")
    parameters = _parameters(tree, "parameters")
    write_parameters(message.parameters, parameters)
    raw: dict[str, bool] = {}
    for index, output in enumerate(_objects(tree, "outputs")):
        field = f"outputs[{index}]"
        name = _text(output.get("name"), f"{field}.name")
        message.outputs.add(name=name)
        if "binary_data" in (asked := _parameters(output, f"{field}.parameters")):
            raw[name] = _flag(asked, "binary_data", f"{field}.parameters")
    return RestRequest(Request(message), _flag(parameters, "binary_data_output", "parameters"), raw)


def write_metadata(metadata: Any) -> dict[str, Any]:
    """A ModelMetadataResponse as JSON."""

    def tensors(described: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in described]

    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": tensors(metadata.inputs),
        "outputs": tensors(metadata.outputs),
        "properties": dict(metadata.properties),
    }


def to_error(status: Status) -> tuple[int, dict[str, str]]:
    """Status and body of a response for a failure."""
    return HTTP_STATUS.get(status[0], 500), {"error": printable(status[1], ERROR_LIMIT)}


def _tree(text: bytes) -> dict[str, Any]:
    """The JSON of a request."""
    try:
        tree = json.loads(text)
    except RecursionError:
        raise InputError("the body is nested too deeply for a request") from None
    except ValueError as exc:  # bad JSON, bad UTF-8, integers with thousands of digits
        raise InputError(f"the body is not JSON: {exc}") from exc
    if not isinstance(tree, dict):
        raise InputError('the body must be a JSON object: {"inputs": [{"name": "input", "shape": [1, …], …}]}')
    return tree


def _text(value: Any, field: str) -> str:
    """A string that can be sent."""
    if not isinstance(value, str):
        raise InputError(f"{field}: must be a string, not {_kind(value)}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{field}: contains half a surrogate pair")
    return value


def _kind(value: Any) -> str:
    """What a value is in JSON."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "missing or null"}
    return names.get(type(value), "a number")


def _objects(tree: Mapping[str, Any], field: str, *, required: bool = False) -> list[dict[str, Any]]:
    """A list of objects."""
    found = tree.get(field, None if required else [])
    if not isinstance(found, list):
        raise InputError(f"{field}: must be an array, not {_kind(found)}")
    for index, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise InputError(f"{field}[{index}]: must be an object, not {_kind(entry)}")
    return found


def _parameters(tree: Mapping[str, Any], field: str) -> dict[str, Parameter]:
    """The parameters of a request, an input or an output."""
    found = tree.get("parameters", {})
    if not isinstance(found, dict):
        raise InputError(f"{field}: must be an object, not {_kind(found)}")
    for name, value in found.items():
        _text(name, field)
        if isinstance(value, str):
            _text(value, f"{field}.{name}")
        elif not isinstance(value, (bool, int, float)) or (isinstance(value, int) and value not in _INT64):
            raise InputError(f"{field}.{printable(name)}: must be a string, a number of 64 bits, true or false")
    return found


def _flag(parameters: Mapping[str, Parameter], name: str, field: str) -> bool:
    """A parameter that is true or false; false if it is missing."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"{field}.{name}: must be true or false, not {_kind(value)}")
    return value


def _add_input(message: Any, tensor: Mapping[str, Any], field: str, left: memoryview) -> memoryview:
    """Adds an input to a message; returns the raw bytes after it."""
    name, datatype = (_text(tensor.get(key), f"{field}.{key}") for key in ("name", "datatype"))
    shape = tensor.get("shape")
    # The product of thousands of sizes would have a million digits.
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMS
        or not all(type(size) is int and 0 <= size < 2**63 for size in shape)
    ):
        raise InputError(f"{field}.shape: must be an array of at most {MAX_DIMS} integers, each 0 or more")
    size = _parameters(tensor, f"{field}.parameters").get("binary_data_size")
    if size is None:
        raw = _values(tensor.get("data"), f"{field}.data", datatype, shape)
    else:
        if "data" in tensor:
            raise InputError(f"{field}: has data and binary_data_size; give one")
        if type(size) is not int or not 0 <= size <= len(left):
            raise InputError(f"{field}.parameters.binary_data_size: {size}, but {len(left)} raw bytes are left")
        raw, left = bytes(left[:size]), left[size:]
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_input_contents.append(raw)
    return left


def _values(data: Any, field: str, datatype: str, shape: list[int]) -> bytes:
    """Values in row-major order, flat or nested as the shape says, as raw contents."""
    if not isinstance(data, list):
        raise InputError(f"{field}: must be an array, not {_kind(data)}")
    dtype = DTYPES.get(datatype)
    if dtype is None:
        return b""  # the datatype is refused with the list of known ones
    flat = _flattened(data, field, shape)
    if len(flat) != math.prod(shape):
        raise InputError(f"{field}: {len(flat)} values, but shape {shape} needs {math.prod(shape)}")
    types, words = _KINDS[dtype.kind]
    if strange := set(map(type, flat)) - types:
        other = next(value for value in flat if type(value) in strange)
        raise InputError(f"{field}: contains {_kind(other)}; {datatype} needs {words}")
    try:
        if dtype.kind == "f":
            with np.errstate(over="ignore"):  # becomes infinite, which is refused later
                return np.array(flat, np.float64).astype(dtype).tobytes()
        array: Array = np.array(flat, np.uint64 if dtype.kind == "u" else np.int64 if dtype.kind == "i" else np.bool_)
        if (
            dtype.kind in "iu"
            and len(flat)
            and (array.max() > np.iinfo(dtype).max or array.min() < np.iinfo(dtype).min)
        ):
            raise OverflowError
    except OverflowError:
        raise InputError(f"{field}: values outside {datatype}") from None
    return array.astype(dtype).tobytes()


def _flattened(data: list[Any], field: str, shape: list[int]) -> list[Any]:
    """The values of nested arrays; a flat array is returned as it is."""
    if not data or not isinstance(data[0], list):
        return data
    level = [data]
    for size in shape:
        if not all(type(row) is list and len(row) == size for row in level):
            raise InputError(f"{field}: nested arrays must have the shape {shape}")
        level = list(chain.from_iterable(level))
    return level
