"""Messages that differ in id and values alone, parsed once.

Nearly all requests to a model look alike, and so do its replies. One that was parsed and checked is kept as a template:
its bytes without id and values. Another one of the same length with the same bytes around them says the same of its own
id and values, because the format looks into neither (protobuf.dev, encoding, "Length-Delimited Records").

Where id and values are is not concluded but tried: with other bytes in those places the parser has to find exactly
those, and nothing else may have changed.
"""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

__all__ = ["REMEMBERED", "Template", "Templates", "field"]

REMEMBERED = 256  # templates; then all are forgotten, so that memory stays flat
MAX_BYTES = 1 << 20  # of a message that is worth it: parsing the largest costs little beside answering them
ID = 3  # number of the field ``id`` in ModelInferRequest and in ModelInferResponse

_INVERTED = bytes(255 - byte for byte in range(256))
_OTHER_ASCII = bytes(ord("b") if byte == ord("a") else ord("a") for byte in range(256))

T = TypeVar("T")


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a message: tag, length, content."""
    return header(number, len(content)) + content


def header(number: int, length: int) -> bytes:
    """What a length-delimited field begins with; its number is at most 15."""
    encoded = bytearray([number << 3 | 2])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


class Template:
    """The bytes of a message but for its id and the values of its only tensor.

    Attributes:
        id: where the id is; empty if the message has none.
        values: where the values are.
    """

    __slots__ = ("_after", "_before", "_between", "_gap", "id", "values")

    def __init__(self, raw: bytes, id_at: slice, values_at: slice) -> None:
        self.id, self.values = id_at, values_at
        first, second = sorted((id_at, values_at), key=lambda place: (place.start, place.stop))
        self._gap = slice(first.stop, second.start)
        self._before, self._between, self._after = raw[: first.start], raw[self._gap], raw[second.stop :]

    @classmethod
    def of(cls, raw: bytes, message: Any, values: str) -> Self | None:
        """The template of a message.

        Args:
            raw: its bytes.
            message: the same, parsed.
            values: name of the repeated field that holds raw values.

        Returns:
            None if it has no values or several, or if a parser would look into those places.
        """
        raws = getattr(message, values)
        if len(raws) != 1 or not raws[0] or len(raw) > MAX_BYTES or not message.id.isascii():
            return None
        values_at = _place(raw, message.DESCRIPTOR.fields_by_name[values].number, raws[0])
        if values_at is None:
            return None
        # Not among the values, which are any bytes.
        around = raw[: values_at.start] + bytes(len(raws[0])) + raw[values_at.stop :]
        id_at = _place(around, ID, message.id.encode()) if message.id else slice(0, 0)
        if id_at is None:
            return None
        template = cls(raw, id_at, values_at)
        return template if template._holds(message, values) else None

    def fits(self, raw: bytes) -> bool:
        """Whether a message of the same length is the same but for an ASCII id and values."""
        return (
            raw.startswith(self._before)
            and raw.endswith(self._after)
            and raw[self._gap] == self._between
            and raw[self.id].isascii()
        )

    def array(self, raw: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The values of a message that fits, as a view."""
        return np.ndarray(shape, dtype, raw, self.values.start)

    def _holds(self, message: Any, values: str) -> bool:
        """Whether the parser finds what is put into the places, and finds nothing else changed."""
        id, content = message.id.encode().translate(_OTHER_ASCII), getattr(message, values)[0].translate(_INVERTED)
        first, second = (id, content) if self.id.stop <= self.values.start else (content, id)
        try:
            other = type(message).FromString(self._before + first + self._between + second + self._after)
        except DecodeError:
            return False
        found = getattr(other, values)
        if other.id != id.decode() or list(found) != [content]:
            return False
        other.id, found[0] = message.id, getattr(message, values)[0]
        return bool(other == message)


class Templates(Generic[T]):
    """Templates by the length of the message, each with what such a message says.

    Args:
        values: name of the repeated field that holds raw values.
    """

    def __init__(self, values: str) -> None:
        self._values = values
        self._known: dict[int, tuple[Template, T]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, raw: bytes) -> tuple[Template, T] | None:
        """The template that a message fits, if one is known."""
        known = self._known.get(len(raw))
        return known if known is not None and known[0].fits(raw) else None

    def learn(self, raw: bytes, message: Any, meaning: T) -> None:
        """Remembers a message that was parsed and checked."""
        template = Template.of(raw, message, self._values)
        if template is not None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[len(raw)] = template, meaning


def _place(raw: bytes, number: int, content: bytes) -> slice | None:
    """Where a field with this content may be."""
    head = header(number, len(content))
    at = raw.find(head + content)
    return None if at < 0 else slice(at + len(head), at + len(head) + len(content))
