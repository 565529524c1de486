"""Reads TOML strictly into frozen dataclasses.

Every file that people write (experiments, inventories, policies, scenarios, machines) is read here. Unknown keys are
errors that name the nearest known key, and a value of the wrong type is an error that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from nonn.errors import ConfigError

__all__ = ["from_mapping", "override", "parse_toml"]

T = TypeVar("T")


def parse_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read ({exc})") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not a TOML file: {exc}") from exc
    except RecursionError:
        raise ConfigError(f"{path}: not a TOML file: nested too deep") from None


def from_mapping(cls: type[T], values: Mapping[str, Any], *, source: str, prefix: str = "") -> T:
    """Builds a configuration dataclass from a mapping, strictly.

    Args:
        cls: the dataclass; a field with a default may be left out.
        values: what the file says.
        source: name of the file, for messages.
        prefix: dotted path of ``values`` inside the file, for messages.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'; {hint}")
    built: dict[str, Any] = {}
    for name, spec in known.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], source=source, name=prefix + name)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{source}: '{prefix}{name}' is missing")
    return cls(**built)


def _convert(hint: Any, value: Any, *, source: str, name: str) -> Any:
    """Checks one value against its type and converts lists to tuples and whole numbers to floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_mapping(hint, value, source=source, prefix=name + ".")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], v, source=source, name=name) for v in value)
    if origin in (typing.Union, types.UnionType):
        hint = next(a for a in arguments if a is not types.NoneType)
        return _convert(hint, value, source=source, name=name)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{source}: '{name}' is too large for a number") from None
    if isinstance(hint, type) and type(value) is hint:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{source}: '{name}' must be a finite number, not {value}")
        return value
    wanted = {
        tuple: "a list",
        float: "a number",
        int: "a whole number",
        str: "a string",
        bool: "true or false",
    }
    kind = wanted.get(origin or hint, "a table")
    raise ConfigError(f"{source}: '{name}' must be {kind}, not {value!r}")


def override(tree: dict[str, Any], text: str) -> None:
    """Puts one ``section.key=value`` into a tree of tables; the value is TOML, or a bare string where it is none.

    Raises:
        ConfigError: it is not of that form.
    """
    key, equals, literal = text.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not sections or not last:
        raise ConfigError(f"--set {text}: write it as section.key=value, for example distill.epochs=3")
    try:
        value = tomllib.loads(f"value = {literal}")["value"]
    except tomllib.TOMLDecodeError:
        value = literal.strip()
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {text}: '{section}' is a value, not a section")
    tree[last] = value
