"""The metadata that a node states about itself, with a small limit that is checked before the reply is parsed.

A node may send anything. Parsed, a reply of empty tensors takes 32 times its bytes of memory, and 0.05 s of the event
loop per megabyte; gRPC's own deserialiser logs a traceback for each reply that it cannot parse. So gRPC refuses a large
reply by its announced length (``METADATA_LIMIT``, in the service config of every channel to a node), and the rest is
parsed here.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from nonn.errors import InputError
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import METADATA_METHOD, SERVICE

__all__ = ["METADATA_BYTES", "METADATA_LIMIT", "ask_metadata"]

METADATA_BYTES = 64 * 1024  # a nonn node sends 700 bytes, a foreign server about 100 for each tensor
METADATA_LIMIT = {
    "name": [{"service": SERVICE, "method": METADATA_METHOD.rpartition("/")[2]}],
    "maxResponseMessageBytes": METADATA_BYTES,
}


async def ask_metadata(channel: Any, model: str, timeout_s: float) -> dict[str, str]:
    """Asks a node for the metadata of its model.

    Args:
        channel: to the node.
        model: name of the model.
        timeout_s: time for the reply.

    Returns:
        The properties.

    Raises:
        InputError: the reply is too large, empty or not a ModelMetadataResponse.
        AioRpcError: there is no reply.
    """
    request = pb.ModelMetadataRequest(name=model).SerializeToString()
    try:
        raw = await channel.unary_unary(METADATA_METHOD)(request, timeout=timeout_s)  # no deserialiser: bytes
    except aio.AioRpcError as exc:
        if exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (exc.details() or ""):
            raise InputError(f"metadata of more than {METADATA_BYTES} bytes") from exc
        raise
    if not isinstance(raw, bytes):  # gRPC gives no message where a server ends the call well without one
        raise InputError("status OK without metadata")
    if len(raw) > METADATA_BYTES:  # over the stream of a node that dials out, which has no such limit
        raise InputError(f"metadata of more than {METADATA_BYTES} bytes")
    try:
        return dict(pb.ModelMetadataResponse.FromString(raw).properties)
    except DecodeError as exc:
        raise InputError("metadata that cannot be parsed") from exc
