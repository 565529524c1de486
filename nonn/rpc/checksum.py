"""A checksum of ModelInfer messages, so that bits flipped on the way are an error and not another answer.

TCP's checksum misses about one damaged segment in 65,000, and TLS, which would find it, is optional. The sender
appends one parameter, ``nonn_crc32``: CRC-32 of the message before it, as eight hexadecimal digits. Protobuf messages
may be concatenated (protobuf.dev, encoding, "Last One Wins"), so other programs read an ordinary parameter. Messages
without it are accepted: older nodes, other servers and clients of the protocol send none. CRC-32 finds every single
flipped bit and every burst of up to 32 bits. It protects from accidents only.

The CRC of a request leaves out its first field, the model's name, since nodes share the rest.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from nonn.errors import DataLossError
from nonn.rpc.v1 import inference_pb2 as pb

__all__ = ["check_sealed", "model_name", "seal"]

PARAMETER, _DIGITS = "nonn_crc32", 8


def _entry() -> bytes:
    """The parameter as it is appended, without its digits; requests and responses have the same field number."""
    message = pb.ModelInferResponse()
    message.parameters[PARAMETER].string_param = "0" * _DIGITS
    return bytes(message.SerializeToString())[:-_DIGITS]


_ENTRY = _entry()
_TAIL = len(_ENTRY) + _DIGITS


@lru_cache(maxsize=64)
def model_name(name: str) -> bytes:
    """The first field of a request."""
    return bytes(pb.ModelInferRequest(model_name=name).SerializeToString())


def seal(body: bytes) -> bytes:
    """A message with its checksum; of a request, the body without the model's name."""
    return b"%b%b%08x" % (body, _ENTRY, zlib.crc32(body))


def check_sealed(raw: bytes, first: bytes = b"") -> None:
    """Checks the checksum of a received message, if it has one.

    Args:
        raw: the message.
        first: the first field, which is not covered; a message that does not begin with it is for another model.

    Raises:
        DataLossError: it was altered on the way.
    """
    end = len(raw) - _TAIL
    if end < 0 or not raw.startswith(_ENTRY, end) or not raw.startswith(first):
        return
    if raw[-_DIGITS:] != b"%08x" % zlib.crc32(memoryview(raw)[len(first) : end]):
        raise DataLossError(f"{len(raw)} bytes were altered on the way (wrong {PARAMETER}); the link is faulty")
