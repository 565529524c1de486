"""Reads the declarations of a configuration class: types of its fields with constraints, meanings and rules."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from nonn.errors import ConfigError
from nonn.toml.constraints import Choice, Constraint, Rules

__all__ = ["Declaration", "check", "check_rules", "choices", "describe", "fields_of", "kind_of", "shown", "unpack"]


@dataclass(frozen=True)
class Declaration:
    """A declared field.

    Attributes:
        hint: its type, with constraints.
        default: its value if left out; ``dataclasses.MISSING`` if it is required.
        meaning: description for users.
    """

    hint: Any
    default: Any
    meaning: str


def _fields_of(cls: type) -> Mapping[str, Declaration]:
    """The fields of a dataclass, by name; read once, since resolving its types takes most of the time of a file."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {}
    for spec in dataclasses.fields(cls):
        factory = spec.default_factory
        default = spec.default if factory is dataclasses.MISSING else factory()
        meanings = [text for text in getattr(hints[spec.name], "__metadata__", ()) if isinstance(text, str)]
        found[spec.name] = Declaration(hints[spec.name], default, meanings[-1] if meanings else "")
    return found


fields_of: Callable[[type], Mapping[str, Declaration]] = cache(_fields_of)


def unpack(hint: Any) -> tuple[Any, list[Constraint]]:
    """A type without its annotations, and the constraints among them."""
    if typing.get_origin(hint) is not Annotated:
        return hint, []
    return hint.__origin__, [each for each in hint.__metadata__ if not isinstance(each, str)]


def choices(hint: Any, field: str = "") -> tuple[str, ...]:
    """The allowed names of a value, or of each item of a list; empty if it is not a choice.

    Args:
        hint: a type, or the class that has the field.
        field: name of the field.
    """
    if field:
        hint = fields_of(hint)[field].hint
    bare, constraints = unpack(hint)
    if typing.get_origin(bare) is Literal:
        return typing.get_args(bare)
    if typing.get_origin(bare) is tuple:
        return choices(typing.get_args(bare)[0])
    return next((each.names for each in constraints if isinstance(each, Choice)), ())


def describe(hint: Any) -> str:
    """Description of the allowed values of a type for users: "a whole number ≥ 1"."""
    bare, constraints = unpack(hint)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is tuple:
        return ", ".join(["a list", *map(str, constraints), f"each {describe(arguments[0])}"])
    if names := choices(hint):
        any_path = ", or package.module:name" * any(isinstance(each, Choice) and each.is_open for each in constraints)
        return f"one of {', '.join(names)}{any_path}" if len(names) > 1 else repr(names[0])
    return " ".join([kind_of(bare), *map(str, constraints)])


def kind_of(bare: Any) -> str:
    """Description of a type for users."""
    return _KINDS.get(typing.get_origin(bare) or bare, "a table")


def check(config: Any, label: str = "") -> None:
    """Checks an object created by a program; defaults are always valid.

    Args:
        config: an object of a dataclass without lists or tables, usually from its ``__post_init__``.
        label: prefix of every message.

    Raises:
        ConfigError: a value is invalid; the message names the field, its value and the rule.
    """
    for name, field in fields_of(type(config)).items():
        value = getattr(config, name)
        for constraint in unpack(field.hint)[1]:
            if value != field.default and (rule := constraint.broken(value)):
                raise ConfigError(f"{label}{name} = {shown(value)}: {rule}")
    check_rules(config, label)


def check_rules(config: Any, prefix: str = "") -> None:
    """Checks the rules that relate several fields of an object.

    Args:
        config: an object of a dataclass, with or without ``rules``.
        prefix: prefix of every key.

    Raises:
        ConfigError: as ``check``.
    """
    rules: Rules = config.rules() if hasattr(config, "rules") else iter(())
    for key, holds, rule in rules:
        if not holds and not key:
            raise ConfigError(f"{prefix.rstrip('.')}: {rule}")
        if not holds:
            raise ConfigError(f"{prefix}{key} = {shown(_value_at(config, key))}: {rule}")


def _value_at(config: Any, key: str) -> Any:
    """The value at a path such as ``fault[0].nodes``."""
    for name in re.findall(r"\w+", key):
        config = config[int(name)] if name.isdigit() else getattr(config, name)
    return config


def shown(value: Any) -> str:
    """A value as shown in a message."""
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, tuple | list) else repr(value)


_KINDS: Mapping[Any, str] = {
    tuple: "a list",
    float: "a number",
    int: "a whole number",
    str: "a string",
    bool: "true or false",
    Literal: "a string",
}
