"""The JSON Schema of a document, with the texts of its docstrings."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from nonn.documents.fields import choices, fields, is_document, json_type

__all__ = ["schema"]


def schema(cls: type[Any]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a document; nested documents are under ``$defs`` by their class.

    Raises:
        TypeError: a docstring does not describe a field under ``Attributes:``, or a type is not a JSON type.
    """
    definitions: dict[str, Any] = {}
    root = _of_document(cls, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions}


def _of_document(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a document; the schemas of nested documents are added to the definitions."""
    summary, texts = _documentation(cls)
    properties: dict[str, Any] = {}
    for field in fields(cls):
        if field.name not in texts:
            raise TypeError(f"{cls.__qualname__}: the docstring has no attribute {field.name}")
        if field.is_rest:
            continue
        types_ = [c for c in choices(field.hint) if not (field.is_optional and c is types.NoneType)]
        properties[field.key] = {**_of_types(types_, definitions), "description": texts[field.name]}
    required = [field.key for field in fields(cls) if field.is_required]
    return {"description": summary, "type": "object", "properties": properties, "required": required}


def _of_types(hints: Sequence[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value of one or several types."""
    if len(hints) == 1:
        return _of_type(hints[0], definitions)
    return {"anyOf": [_of_type(hint, definitions) for hint in hints]}


def _of_type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    arguments, kind = typing.get_args(hint), json_type(hint)
    if typing.get_origin(hint) is Annotated:
        limit = arguments[1]
        high = {} if limit.high is None else {"maximum": limit.high}
        return {"type": kind, "minimum": limit.low, **high}
    if is_document(hint):
        name = hint.__name__
        if name not in definitions:
            definitions[name] = {}  # keeps its place before nested documents
            definitions[name] |= _of_document(hint, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if kind == "array":
        return {"type": kind, "items": _of_types(choices(arguments[0]), definitions)}
    if kind == "object" and arguments[1] is not object:
        return {"type": kind, "additionalProperties": _of_types(choices(arguments[1]), definitions)}
    return {"type": kind} if kind else {}


def _documentation(cls: type[Any]) -> tuple[str, Mapping[str, str]]:
    """The first paragraph of a docstring, and the text of each attribute."""
    before, _, section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return " ".join(before.split("\n\n")[0].split()), {name: " ".join(text.split()) for name, text in entries}
