"""Documents to JSON and back."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from nonn.documents.fields import choices, fields, is_document, json_type
from nonn.errors import DataError
from nonn.files import write_json

__all__ = ["from_json", "read", "to_json", "write"]

T = TypeVar("T")

_SHOWN = 60  # characters of a wrong value in a message
_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "null": (types.NoneType,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list, tuple),
    "object": (Mapping,),
}
_SCALARS = (str, float, int, types.NoneType)  # checked first, since most values are scalars
_PLAIN: Mapping[Any, set[type]] = {int: {int}, float: {int, float}, str: {str}}
_NAMES = {"integer": "a whole number", "array": "a list", "object": "an object", "null": "null"}


def to_json(value: Any) -> Any:
    """A document, or any value inside one, as dicts, lists and plain values."""
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if not is_document(value):
        return value
    document: dict[str, Any] = {}
    for field in fields(value.__class__):
        inner = getattr(value, field.name)
        if field.is_rest:
            document |= to_json(inner)
        elif inner is not None or not field.is_optional:
            document[field.key] = to_json(inner)
    return document


def from_json(cls: type[T], value: object, source: str) -> T:
    """Reads a document from parsed JSON.

    Args:
        cls: class of the document.
        value: parsed JSON.
        source: name of the file, for messages.

    Raises:
        DataError: a field is missing, or has a wrong type or value; the message names source and field.
    """
    return typing.cast(T, _read(cls, value, source, ""))


def read(cls: type[T], path: Path) -> T:
    """Reads a document from a file.

    Raises:
        OSError: the file cannot be read.
        DataError: it is not JSON, or invalid; see ``from_json``.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise DataError(f"{path}: not a JSON document ({exc})") from exc
    return from_json(cls, value, str(path))


def write(path: Path, document: object) -> None:
    """Writes a document as indented JSON, whole or not at all."""
    write_json(path, to_json(document))


def _read(hint: Any, value: object, source: str, path: str) -> object:
    """Checks one value against its annotation."""
    for choice in choices(hint):
        kind = json_type(choice)
        if not kind or (isinstance(value, _PYTHON_TYPES[kind]) and (kind == "boolean") == isinstance(value, bool)):
            return _read_one(choice, value, source, path)
    wanted = " or ".join(_NAMES.get(json_type(choice), f"a {json_type(choice)}") for choice in choices(hint))
    raise DataError(f"{_place(source, path)}{_shown(value)}: must be {wanted}")


def _read_one(hint: Any, value: Any, source: str, path: str) -> object:
    """Reads a value of the right JSON type."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        base, *limits = arguments
        for limit in limits:
            if value not in limit:
                raise DataError(f"{_place(source, path)}{_shown(value)}: must be a number {limit}")
        return _read_one(base, value, source, path)
    if is_document(hint):
        return _read_object(hint, value, source, path)
    if arguments and json_type(hint) == "array":
        if _are_plain(arguments[0], value):
            return tuple(value)
        return tuple(_read(arguments[0], inner, source, f"{path}[{i}]") for i, inner in enumerate(value))
    if arguments:
        return {key: _read(arguments[1], inner, source, _inside(path, key)) for key, inner in value.items()}
    return value


def _are_plain(hint: Any, values: Any) -> bool:
    """Whether an annotation is a plain type with limits, and all values keep to it; measured arrays are long."""
    base, *limits = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    return set(map(type, values)) <= _PLAIN.get(base, set()) and all(v in limit for limit in limits for v in values)


def _read_object(cls: Any, value: Mapping[str, object], source: str, path: str) -> object:
    """Reads a nested document."""
    missing = [field.key for field in fields(cls) if field.is_required and field.key not in value]
    if missing:
        raise DataError(f"{source}{': ' * bool(path)}{path} lacks {', '.join(missing)}")
    known = {field.key for field in fields(cls) if not field.is_rest}
    found: dict[str, object] = {}
    for field in fields(cls):
        if field.is_rest:
            found[field.name] = {key: inner for key, inner in value.items() if key not in known}
        elif field.key in value:
            found[field.name] = _read(field.hint, value[field.key], source, _inside(path, field.key))
    return cls(**found)


def _inside(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _place(source: str, path: str) -> str:
    return f"{source}: {path} = " if path else f"{source}: "


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
