"""Reads TOML strictly into frozen dataclasses: tables become objects, lists tuples, whole numbers floats if declared.

Unknown keys are errors that name the nearest known key. A value that has the wrong type or breaks a constraint of its
field is an error that names file, key, value and allowed values. NaN and infinity are errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from nonn.errors import ConfigError
from nonn.toml.constraints import did_you_mean
from nonn.toml.declarations import check_rules, describe, fields_of, kind_of, shown, unpack

__all__ = ["from_mapping", "override", "parse_toml"]

T = TypeVar("T")


def parse_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc})") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc
    except ValueError as exc:  # a TOMLDecodeError, or a whole number of more digits than Python reads
        raise ConfigError(f"{path}: not a TOML file: {exc}") from exc
    except RecursionError:
        raise ConfigError(f"{path}: not a TOML file: nested too deep") from None


def from_mapping(cls: type[T], values: Mapping[str, Any], *, source: str, prefix: str = "", rules: bool = True) -> T:
    """Builds an object of a configuration class from a mapping, strictly.

    Args:
        cls: the dataclass; a field with a default may be left out.
        values: contents of the file.
        source: name of the file, for messages.
        prefix: dotted path of ``values`` inside the file, for messages.
        rules: also check the rules that relate several fields. Off for a tree that was checked and then changed.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or is invalid.
    """
    try:
        return _build(cls, values, prefix, rules)
    except ConfigError as exc:
        raise ConfigError(f"{source}: {exc}") from None


def _build(cls: type[T], values: Mapping[str, Any], prefix: str, rules: bool) -> T:
    known = fields_of(cls)
    values = getattr(cls, "complete", lambda values: values)(values)
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key '{prefix}{key}'; {did_you_mean(key, known, 'known keys', prefix)}")
    built: dict[str, Any] = {}
    for name, field in known.items():
        if name in values:
            built[name] = _convert(field.hint, values[name], prefix + name, rules)
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"'{prefix}{name}' is missing")
    try:
        config = cls(**built)
    except ConfigError as exc:  # the object checks itself in __post_init__
        raise ConfigError(f"{prefix}{exc}") from None
    if rules:
        check_rules(config, prefix)
    return config


def _convert(hint: Any, value: Any, key: str, rules: bool) -> Any:
    """Checks one value; converts lists to tuples, tables to objects and whole numbers to floats."""
    bare, constraints = unpack(hint)
    value = _typed(bare, value, key, rules)
    for constraint in constraints:
        if rule := constraint.broken(value):
            raise ConfigError(f"{key} = {shown(value)}: {rule}")
    return value


def _typed(bare: Any, value: Any, key: str, rules: bool) -> Any:
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            with contextlib.suppress(ConfigError):
                return _convert(argument, value, key, rules)
        raise ConfigError(f"{key} = {shown(value)}: must be {describe(bare)}")
    if isinstance(value, Mapping):
        if dataclasses.is_dataclass(bare) and isinstance(bare, type):
            return _build(bare, value, key + ".", rules)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            if dataclasses.is_dataclass(arguments[1]):
                return {name: _convert(arguments[1], each, f"{key}.{name}", rules) for name, each in value.items()}
            _check_plain(value, key)
            return dict(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], each, f"{key}[{i}]", rules) for i, each in enumerate(value))
    if origin is Literal and isinstance(value, str):
        if value not in arguments:
            raise ConfigError(f"{key} = {value!r}: unknown; {did_you_mean(value, arguments)}")
        return value
    if bare is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"'{key}' is too large for a number") from None
    if isinstance(bare, type) and type(value) is bare:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"'{key}' must be a finite number, not {value}")
        return value
    raise ConfigError(f"'{key}' must be {kind_of(bare)}, not {shown(value)}")


def _check_plain(value: Any, key: str) -> None:
    """Checks a table without declared keys: the key of a stage is a hash of its JSON, which has no dates."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            _check_plain(each, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            _check_plain(each, f"{key}[{i}]")
    elif not isinstance(value, str | int | float):
        raise ConfigError(f"'{key}' must be a string, a number, true or false, a list or a table, not {value}")


def override(tree: dict[str, Any], text: str) -> None:
    """Sets one ``section.key=value`` in a tree of tables; the value is TOML, or else a bare string.

    Raises:
        ConfigError: the text does not have that form.
    """
    if "\n" in text or "\r" in text:  # TOML would read further lines as further keys
        raise ConfigError(f"--set {text!r}: must be one line; give --set again for another key")
    key, equals, literal = text.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not sections or not last:
        raise ConfigError(f"--set {text}: write it as section.key=value, for example distill.epochs=3")
    try:
        value = tomllib.loads(f"value = {literal}")["value"]
    except (ValueError, RecursionError):  # not TOML, too many digits, nested too deep
        value = literal.strip()
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {text}: '{section}' is a value, not a section")
    tree[last] = value
