"""Tables of the fields of a JSON Schema, one for each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["fields_markdown"]

_NAMES = {"integer": "whole number", "null": "null"}


def fields_markdown(described: Mapping[str, Any]) -> str:
    """Every field of a document and of its nested classes: a heading and a table for each class."""
    blocks = [_fields_table(described)]
    for name, inner in described["$defs"].items():
        blocks.append(f"### {name}\n\n{inner['description']}\n\n{_fields_table(inner)}")
    return "\n\n".join(blocks)


def _fields_table(described: Mapping[str, Any]) -> str:
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for key, value in described["properties"].items():
        may_be_absent = "" if key in described["required"] else "; may be absent"
        text = f"{value['description'].rstrip('.')}".replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(value)}{may_be_absent} | {text} |")
    return "\n".join(lines)


def _type(value: Mapping[str, Any]) -> str:
    """A type in words, with its limits and a link to its own table."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(map(_type, value["anyOf"]))
    if "items" in value:
        return f"list of {_type(value['items'])}"
    name = _NAMES.get(value.get("type", ""), value.get("type", "any value"))
    if "maximum" in value:
        return f"{name} from {value['minimum']} to {value['maximum']}"
    return f"{name} ≥ {value['minimum']}" if "minimum" in value else name
