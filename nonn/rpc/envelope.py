"""The order of fields in which nonn writes ModelInfer messages, so that repeated ones need no parser.

Messages between an aggregator and its nodes repeat themselves: only the id and the values of the tensors differ. They
are written in this order, which any protobuf parser reads (protobuf.dev, encoding, "Last One Wins"):

    envelope · id · contents of each tensor · checksum

Other clients that send no id and raw contents write the same order without the checksum.

The envelope has all other fields; protobuf serialises it once. ``Envelopes`` remembers the envelopes of messages that
were parsed. A message of the same length that begins with the same bytes can only mean the same, so its id and contents
are taken from their places. Anything else is parsed.

A device sleeps between requests and finds its caches taken by other programs, so the code that a request passes counts
more than its arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from nonn.rpc.v1 import inference_pb2 as pb

__all__ = ["Envelopes", "lay_out", "tag"]

T = TypeVar("T")

MAX_ENVELOPE_BYTES = 1024  # those of nonn have less than 300
MAX_BYTES = 256 * 1024  # of larger ones, parsing is a small part of the cost
MAX_ENVELOPES = 128  # of one peer: sizes of batches, and lengths of ids


def tag(kind: Any, field: str) -> int:
    """First byte of a field with a length, of a message class."""
    number: int = kind.DESCRIPTOR.fields_by_name[field].number
    return number << 3 | 2


_ID = tag(pb.ModelInferRequest, "id")  # the same in responses


@lru_cache(maxsize=256)
def _head(first: int, size: int) -> bytes:
    """Tag and length before the bytes of a field."""
    head = bytearray([first])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head)


def lay_out(envelope: bytes, id: str, contents: Iterable[bytes], first: int) -> bytes:
    """A message without its checksum.

    Args:
        envelope: all other fields, serialised.
        id: of the request; empty for none.
        contents: bytes of each tensor.
        first: ``tag`` of the field that has them.
    """
    pieces = [envelope]
    if id:
        encoded = id.encode()
        pieces += [_head(_ID, len(encoded)), encoded]
    for content in contents:
        pieces += [_head(first, len(content)), content]
    return b"".join(pieces)


class _Place(NamedTuple, Generic[T]):
    """Where the parts of a message with a known envelope are."""

    start: bytes  # envelope, and what is before the id
    id_end: int
    head: bytes  # what is between id and contents
    meaning: T


class Envelopes(Generic[T]):
    """Envelopes of messages with one tensor that one reader has parsed.

    Args:
        kind: class of the messages.
        field: of the contents of tensors.
    """

    def __init__(self, kind: Any, field: str) -> None:
        self._kind, self._field, self._tag = kind, field, tag(kind, field)
        self._kept: dict[int, _Place[T]] = {}  # by the length without checksum

    def find(self, raw: bytes, end: int) -> tuple[T, str, bytes] | None:
        """What a message with a known envelope means, its id and the contents of its tensor; None for any other one.

        Args:
            raw: the message.
            end: number of its bytes before the checksum.
        """
        place = self._kept.get(end)
        if place is None or not raw.startswith(place.start) or not raw.startswith(place.head, place.id_end):
            return None
        try:
            id = raw[len(place.start) : place.id_end].decode()
        except UnicodeDecodeError:  # protobuf refuses it
            return None
        return place.meaning, id, raw[place.id_end + len(place.head) : end]

    def keep(self, raw: bytes, end: int, message: Any, meaning: T) -> None:
        """Remembers the envelope of a message, if it has the order of fields above.

        Args:
            raw: the message.
            end: number of its bytes before the checksum.
            message: the same, parsed.
            meaning: for ``find``; must not depend on id and contents.
        """
        contents = getattr(message, self._field)
        if end > MAX_BYTES or len(contents) != 1:
            return
        rest = lay_out(b"", message.id, contents, self._tag)
        envelope = raw[: end - len(rest)]
        if len(envelope) > MAX_ENVELOPE_BYTES or not raw.startswith(rest, len(envelope)):
            return
        try:
            alone = self._kind.FromString(envelope)
        except DecodeError:  # it ends within a field
            return
        if alone.id or getattr(alone, self._field):
            return
        if len(self._kept) >= MAX_ENVELOPES:
            self._kept.clear()
        id_bytes = len(message.id.encode())
        start = envelope + _head(_ID, id_bytes) if id_bytes else envelope
        head = _head(self._tag, len(contents[0]))
        self._kept[end] = _Place(start, len(start) + id_bytes, head, meaning)
