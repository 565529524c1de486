"""Arrays ↔ messages of the Open Inference Protocol, and errors ↔ gRPC status.

Values are written raw, because widespread clients read nothing else; both raw and typed values are read. Every size,
shape and datatype is checked before bytes from the network become an array, and errors name the tensor. Arrays of raw
values are views of the message: no copy, not writable.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from nonn import errors
from nonn.errors import BundleError, ConfigError, InputError, NonnError, UnreachableError
from nonn.rpc.outline import MAX_PARSED_BYTES
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.security import handshake
from nonn.telemetry.printable import printable

__all__ = [
    "ANSWERS_SERVICE",
    "CHANNEL_OPTIONS",
    "CLIENT_STREAMS",
    "DATATYPES",
    "DTYPES",
    "ERROR_KEY",
    "INFER_METHOD",
    "INFER_STREAM_METHOD",
    "MAX_DIMS",
    "MAX_MESSAGE_BYTES",
    "MAX_SAMPLES",
    "MAX_STREAMS",
    "MAX_STREAM_BYTES",
    "MAX_STREAM_REQUESTS",
    "METADATA_METHOD",
    "RECONNECTING_OPTIONS",
    "SENSING_SERVICE",
    "SERVICE",
    "STREAMING_SERVICE",
    "STREAM_VERSION",
    "Descriptor",
    "Status",
    "add_descriptors",
    "add_tensors",
    "check_batch",
    "from_status",
    "little_endian",
    "new_request",
    "read_input",
    "read_parameters",
    "read_tensors",
    "request_limit",
    "to_status",
    "write_parameters",
]

SERVICE = "inference.GRPCInferenceService"
SENSING_SERVICE, ANSWERS_SERVICE = "nonn.rpc.v1.Sensing", "nonn.rpc.v1.Answers"
STREAMING_SERVICE = "nonn.rpc.v1.Streaming"
INFER_STREAM_METHOD = f"/{STREAMING_SERVICE}/Infer"
INFER_METHOD, METADATA_METHOD = f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelMetadata"

Array = NDArray[Any]
Parameter = bool | int | float | str
Descriptor = tuple[str, np.dtype[Any], tuple[int, ...]]  # name, little-endian dtype and shape of a tensor
Status = tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]  # code, text and trailing metadata

# Raw contents are little-endian on every machine.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_TYPED_FIELD = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}

_WIDEST = {"i": np.dtype(np.int64), "u": np.dtype(np.uint64)}  # by kind; holds every value of a typed field

# gRPC's own limit of 4 MiB is 340 images of 32 × 32 in float32; a batch of a thousand should pass.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_SAMPLES = 1024  # of one request, by default
MAX_DIMS = 64  # as many as NumPy has
# For every channel. Devices are on the local network, so proxies of the environment are not used.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
# Calls that a server takes at once from one connection; further ones are refused. gRPC clients keep them back, but not
# before they know the limit, and a call that has ended for the client may still count for the server: a client that is
# answered all at once asks again while its last calls count, so it opens less than half of the limit.
MAX_STREAMS = 100
CLIENT_STREAMS = 48
# Largest request in a stream to a node. Larger ones are unary calls: a stream passes its messages one after another,
# and a call costs little beside so many bytes.
MAX_STREAM_BYTES = 64 * 1024
MAX_STREAM_REQUESTS = 99  # without a reply, in one stream
STREAM_VERSION = 1
# For channels that outlive their peer. A restarted peer is found within half a second, not after gRPC's back-off of up
# to two minutes. The minimum also limits one connection attempt: a stopped process accepts the connection but does not
# answer. Keepalive is for links that fail silently.
RECONNECTING_OPTIONS: tuple[tuple[str, int], ...] = (
    *CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
)

# Trailing metadata with the name of nonn's error: UNAVAILABLE alone does not distinguish a lost quorum from a lost
# server.
ERROR_KEY = "nonn-error"


def add_tensors(descriptors: Any, raws: Any, tensors: Mapping[str, Array]) -> None:
    """Writes arrays raw.

    Args:
        descriptors: ``request.inputs`` or ``response.outputs``; appended to.
        raws: ``request.raw_input_contents`` or ``response.raw_output_contents``; appended to.
        tensors: arrays by name, any shape.

    Raises:
        InputError: the protocol has no name for a dtype.
    """
    arrays = {name: little_endian(array) for name, array in tensors.items()}
    add_descriptors(descriptors, [(name, array.dtype, array.shape) for name, array in arrays.items()])
    raws.extend([array.tobytes() for array in arrays.values()])


def add_descriptors(descriptors: Any, tensors: Iterable[Descriptor]) -> None:
    """Writes name, datatype and shape of arrays.

    Args:
        descriptors: as in ``add_tensors``.
        tensors: of the arrays.

    Raises:
        InputError: the protocol has no name for a dtype.
    """
    for name, dtype, shape in tensors:
        if dtype not in DATATYPES:
            raise InputError(f"tensor '{name}': dtype {dtype} has no name in the protocol; use {_known()}")
        descriptors.add(name=name, datatype=DATATYPES[dtype], shape=shape)


def little_endian(array: Array) -> Array:
    """The same values in the byte order of raw contents; copied only if necessary."""
    order = array.dtype.byteorder
    if order == "|" or order == "<" or (order == "=" and sys.byteorder == "little"):
        return array
    return array.astype(array.dtype.newbyteorder("<"))


def read_tensors(descriptors: Sequence[Any], raws: Sequence[bytes]) -> dict[str, Array]:
    """Reads arrays, raw or typed.

    Args:
        descriptors: ``request.inputs`` or ``response.outputs``.
        raws: ``request.raw_input_contents`` or ``response.raw_output_contents``.

    Returns:
        Arrays by name.

    Raises:
        InputError: an unknown datatype, a negative dimension, a wrong size, values outside their type, raw and typed
            values together, or a name that occurs twice.
    """
    if raws and len(raws) != len(descriptors):
        raise InputError(f"{len(raws)} raw contents for {len(descriptors)} tensors: give one for each, or none")
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(descriptors):
        name, shape = tensor.name, tuple(tensor.shape)
        if name in arrays:
            raise InputError(f"tensor '{name}' is given twice")
        if tensor.datatype not in DTYPES:
            raise InputError(f"tensor '{name}': unknown datatype '{tensor.datatype}'; known: {_known()}")
        if shape and min(shape) < 0:
            raise InputError(f"tensor '{name}': shape {list(shape)} has a negative dimension")
        if raws and tensor.HasField("contents") and tensor.contents.ByteSize():
            raise InputError(f"tensor '{name}': raw and typed contents are both given; give one")
        arrays[name] = _raw(tensor, raws[index], shape) if raws else _typed(tensor, shape)
    return arrays


def _raw(tensor: Any, raw: bytes, shape: tuple[int, ...]) -> Array:
    """A view of raw contents."""
    dtype = DTYPES[tensor.datatype]
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise InputError(
            f"tensor '{tensor.name}': {len(raw)} bytes of raw contents, but {tensor.datatype} {list(shape)} "
            f"needs {wanted}"
        )
    array = _shaped(np.frombuffer(raw, dtype), shape, tensor.name)
    if tensor.datatype == "BOOL" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        # NumPy accepts any byte as a bool, and then True == True can be false.
        raise InputError(f"tensor '{tensor.name}': BOOL contents must be bytes 0 and 1")
    return array


def _typed(tensor: Any, shape: tuple[int, ...]) -> Array:
    """An array of typed contents."""
    field, size = _TYPED_FIELD.get(tensor.datatype), math.prod(shape)
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if field is None and size:
        raise InputError(f"tensor '{tensor.name}': {tensor.datatype} must be sent as raw contents")
    if set(filled) - {field}:
        raise InputError(f"tensor '{tensor.name}': {tensor.datatype} belongs in {field}, not in {', '.join(filled)}")
    values = getattr(tensor.contents, field) if field else []
    if len(values) != size:
        raise InputError(f"tensor '{tensor.name}': {len(values)} values, but shape {list(shape)} needs {size}")
    dtype = DTYPES[tensor.datatype]
    # NumPy copies protobuf's own array; a loop over the values would take a hundred times as long.
    array: Array = np.array(values, _WIDEST.get(dtype.kind, dtype))
    if dtype.kind in _WIDEST and size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InputError(f"tensor '{tensor.name}': values outside {tensor.datatype} ({limits.min} to {limits.max})")
    return _shaped(array.astype(dtype, copy=False), shape, tensor.name)


def _shaped(array: Array, shape: tuple[int, ...], name: str) -> Array:
    """An array with as many values as its shape needs."""
    try:
        return array.reshape(shape)
    except ValueError as exc:  # more dimensions than NumPy has, or a size of 0 next to huge ones
        raise InputError(f"tensor '{name}': shape of {len(shape)} dimensions is impossible ({exc})") from exc


def request_limit(shape: tuple[int, ...], max_samples: int, most: int = MAX_MESSAGE_BYTES) -> int:
    """Bytes of the largest request: samples in float32, plus names and parameters.

    Args:
        shape: of one sample.
        max_samples: samples of one request.
        most: fewer bytes than these samples have, unless one sample needs more.
    """
    samples = min(4 * max_samples * math.prod(shape), max(most, 4 * math.prod(shape)))
    return min(MAX_MESSAGE_BYTES, samples + MAX_PARSED_BYTES)


def read_input(
    descriptors: Sequence[Any], raws: Sequence[bytes], shape: tuple[int, ...], max_samples: int | None = None
) -> Array:
    """Reads the only input of a nonn model; values become an array only if name, datatype and shape are right.

    Args:
        descriptors: ``request.inputs``.
        raws: ``request.raw_input_contents``.
        shape: of one sample.
        max_samples: the largest B; None for any.

    Returns:
        The batch [B, *shape], as ``check_batch`` returns it.

    Raises:
        InputError: as in ``check_batch`` and ``read_tensors``.
    """
    _check_names([tensor.name for tensor in descriptors])
    tensor = descriptors[0]
    if tensor.datatype not in DTYPES:
        raise InputError(f"tensor 'input': unknown datatype '{tensor.datatype}'; known: {_known()}")
    if len(tensor.shape) > MAX_DIMS:
        raise InputError(f"tensor 'input': a shape of {len(tensor.shape)} dimensions, expected {1 + len(shape)}")
    _check_form(DTYPES[tensor.datatype], tuple(tensor.shape), shape, max_samples)
    return _finite(read_tensors(descriptors, raws)["input"])


def _check_names(names: Collection[str]) -> None:
    """Refuses other tensors than ``input``."""
    if len(names) != 1 or "input" not in names:
        given = ", ".join(f"'{name}'" for name in names) or "nothing"
        raise InputError(f"the model accepts one tensor, 'input'; the request contains {given}")


def _check_form(dtype: np.dtype[Any], given: tuple[int, ...], shape: tuple[int, ...], max_samples: int | None) -> None:
    """Refuses another dtype of an input [B, …], another shape, no sample or too many."""
    if dtype.char not in "Bf":
        raise InputError(f"tensor 'input': dtype {dtype}; send uint8 (UINT8) or float32 (FP32)")
    if given[1:] != shape or given[0] < 1:
        what = "an empty batch;" if given[1:] == shape and not given[0] else f"shape {list(given)},"
        raise InputError(f"tensor 'input': {what} expected [B, {', '.join(map(str, shape))}], B at least 1")
    if max_samples is not None and given[0] > max_samples:
        raise InputError(
            f"tensor 'input': {given[0]} samples; the limit is {max_samples} per request, so send several requests"
        )


def check_batch(tensors: Mapping[str, Array], shape: tuple[int, ...], max_samples: int | None = None) -> Array:
    """Checks and returns the only input of a nonn model.

    Args:
        tensors: of the request, by name.
        shape: of one sample.
        max_samples: the largest B; None for any.

    Returns:
        The batch [B, *shape], uint8 or finite float32, B ≥ 1.

    Raises:
        InputError: another tensor, shape or dtype, no sample or too many, NaN or infinity.
    """
    _check_names(tensors)
    batch = tensors["input"]
    _check_form(batch.dtype, batch.shape, shape, max_samples)
    return _finite(batch)


def _finite(batch: Array) -> Array:
    """Refuses NaN and infinity; returns the batch."""
    if batch.dtype.char == "f" and not np.isfinite(batch).all():
        bad = np.flatnonzero(~np.isfinite(batch.reshape(len(batch), -1)).all(axis=1))
        raise InputError(f"tensor 'input': NaN or infinity in sample {bad[0]} ({len(bad)} of {len(batch)} samples)")
    return batch


def write_parameters(target: Any, parameters: Mapping[str, Parameter]) -> None:
    """Writes request or response parameters into a message's map."""
    for name, value in parameters.items():
        # bool before int: True is an int in Python.
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


def read_parameters(source: Mapping[str, Any]) -> dict[str, Parameter]:
    """Request or response parameters as Python values, without unset ones."""
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in source.items()}
    return {name: getattr(source[name], field) for name, field in chosen.items() if field}


def to_status(exc: BaseException) -> Status:
    """Maps an error to gRPC status: code, text and trailing metadata."""
    if isinstance(exc, NonnError):
        return grpc.StatusCode[exc.grpc_status], str(exc), ((ERROR_KEY, type(exc).__name__),)
    return grpc.StatusCode.INTERNAL, f"internal error ({type(exc).__name__}); see the server's log", ()


def from_status(exc: grpc.RpcError, address: str) -> NonnError:
    """The inverse of ``to_status`` on the client's side; the message names the address.

    Args:
        exc: a failed call, of grpc or grpc.aio.
        address: the address called.
    """
    code, details = exc.code(), printable(exc.details() or "", 2000)
    name = dict(exc.trailing_metadata() or ()).get(ERROR_KEY, "")
    cls = getattr(errors, str(name), None) if name in errors.__all__ else None
    if cls is not None and cls is not errors.MissingExtraError:
        return cls(f"{address}: {details}")  # type: ignore[no-any-return]
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):  # CANCELLED: by a server that ends
        if "Expected SETTINGS frame" in details or "HTTP/1" in details:  # gRPC's own words about the first bytes
            details = "this is an HTTP port, such as that of the dashboard; give the port for gRPC"
        return UnreachableError(f"{address}: does not answer ({handshake.reason(details) or details})")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnreachableError(f"{address}: no answer in time; is it overloaded, or the timeout too short?")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:  # gRPC's own words
        raising = "raise the server's --max-samples or --max-request-mb"
        return InputError(f"{address}: {details}; send fewer samples per request, or {raising}")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return InputError(f"{address}: {details}")
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return BundleError(f"{address}: {details}")
    if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        return ConfigError(f"{address}: {details}; is this the address of a nonn aggregator?")
    return NonnError(f"{address}: {code.name}: {details}")


def _known() -> str:
    return ", ".join(DTYPES)


def new_request(model: str, tensors: Mapping[str, Array], parameters: Mapping[str, Parameter], id: str = "") -> Any:
    """An inference request."""
    request = pb.ModelInferRequest(model_name=model, id=id)
    add_tensors(request.inputs, request.raw_input_contents, tensors)
    write_parameters(request.parameters, parameters)
    return request
