"""The top-level fields of a ModelInferRequest, checked before it is parsed.

Parsing costs what a message contains, not what it weighs: 12 MB of raw contents take a millisecond, but 12 MB of empty
tensors take seconds and 500 MB, while nothing else in the process runs. Values belong in ``raw_input_contents``; all
other fields, with them typed contents, may have ``MAX_PARSED_BYTES``.

Reference: protobuf.dev, encoding.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from nonn.errors import InputError

__all__ = ["MAX_FIELDS", "MAX_PARSED_BYTES", "check_outline"]

MAX_PARSED_BYTES = 64 * 1024  # 8 MB of memory and some milliseconds at most
MAX_FIELDS = 256  # a request of nonn has about eight
_RAW_CONTENTS = 7  # number of the field
_VARINT, _LEN = 0, 2
_FIXED = {1: 8, 3: 0, 4: 0, 5: 4}  # wire type: bytes; of a group, whose fields follow, both ends
_MAX_VARINT = 10  # bytes


def check_outline(raw: bytes) -> None:
    """Refuses a message that costs more than its raw contents.

    Args:
        raw: the message.

    Raises:
        InputError: it has too many fields, or too many bytes in others than ``raw_input_contents``.
        DecodeError: it is malformed.
    """
    at, end, num_fields, parsed = 0, len(raw), 0, len(raw)
    while at < end:
        num_fields += 1
        if num_fields > MAX_FIELDS:
            raise InputError(
                f"the request has more than {MAX_FIELDS} fields; the model accepts one tensor, 'input': "
                "send all samples in it"
            )
        # Most fields are short, with one byte for each of tag and size.
        if raw[at] & 0x87 == _LEN and end - at > 1 and raw[at + 1] < 0x80:
            at += 2 + raw[at + 1]
            continue
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == _LEN:
            size, at = _varint(raw, at)
            at += size
            if tag >> 3 == _RAW_CONTENTS:
                parsed -= size
        elif kind == _VARINT:
            _, at = _varint(raw, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise DecodeError(f"field {tag >> 3} has wire type {kind}")
    if at > end:
        raise DecodeError("the last field is incomplete")
    if parsed > MAX_PARSED_BYTES:
        raise InputError(
            f"the request has {parsed} bytes outside raw_input_contents, and the limit is {MAX_PARSED_BYTES}: "
            "send raw_input_contents instead of typed contents"
        )


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next one begins."""
    value = shift = 0
    for byte in raw[at : at + _MAX_VARINT]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise DecodeError("a number is incomplete")
