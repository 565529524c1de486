"""The fields of a document, from their annotations: key, JSON type and limits of a number."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

__all__ = [
    "OPTIONAL",
    "REST",
    "Between",
    "Difference",
    "Field",
    "Share",
    "Whole",
    "choices",
    "fields",
    "is_document",
    "json_type",
]

_JSON_TYPES = {types.NoneType: "null", bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass(frozen=True)
class Between:
    """Limits of a number.

    Attributes:
        low: the smallest value.
        high: the largest value; None for no limit.
    """

    low: float
    high: float | None = None

    def __contains__(self, value: float) -> bool:
        return value >= self.low and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        return f"of at least {self.low:g}" if self.high is None else f"from {self.low:g} to {self.high:g}"


Whole = Annotated[int, Between(0)]  # as in nonn.toml
Share = Annotated[float, Between(0, 1)]  # an accuracy or a probability
Difference = Annotated[float, Between(-1, 1)]  # difference of two shares


OPTIONAL = {"optional": True}  # metadata of a field that is None where the document lacks its key
REST = {"rest": True}  # metadata of the field for all keys that no other field has


@dataclass(frozen=True)
class Field:
    """One field of a document.

    Attributes:
        name: name of the attribute.
        key: key in JSON.
        hint: its annotation.
        is_required: a document without it is an error.
        is_optional: its metadata is ``OPTIONAL``.
        is_rest: its metadata is ``REST``.
    """

    name: str
    key: str
    hint: Any
    is_required: bool
    is_optional: bool
    is_rest: bool


@functools.cache
def fields(cls: Any) -> tuple[Field, ...]:
    """The fields of a document, in its order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return tuple(
        Field(
            spec.name,
            spec.name.removesuffix("_"),
            hints[spec.name],
            spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING,
            "optional" in spec.metadata,
            "rest" in spec.metadata,
        )
        for spec in dataclasses.fields(cls)
    )


def is_document(value: Any) -> bool:
    """Whether a value is a document, or an annotation is the class of one."""
    return dataclasses.is_dataclass(value)


@functools.cache
def json_type(hint: Any) -> str:
    """The JSON type of an annotation that is not a union; empty for any."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return json_type(typing.get_args(hint)[0])
    if hint is object:
        return ""
    if origin is tuple:
        return "array"
    if origin is Mapping or is_document(hint):
        return "object"
    if hint not in _JSON_TYPES:
        raise TypeError(f"{hint} is not a type of a JSON document")
    return _JSON_TYPES[hint]


@functools.cache
def choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)
