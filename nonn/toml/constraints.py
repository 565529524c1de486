"""What a value may be, declared on the field it belongs to.

::

    @dataclass(frozen=True, kw_only=True)
    class TrainingConfig:
        epochs: Annotated[int, Range(ge=1), "passes over the training split"] = 30
        schedule: Annotated[Literal["one-cycle", "step"], "course of the learning rate"] = "one-cycle"
        milestones: Annotated[tuple[Share, ...], "step: lr × 0.1 at these shares of all steps"] = (0.625, 0.75)

        def rules(self) -> Rules:
            yield "milestones", self.schedule == "step" or …, "belongs to schedule = 'step'"

The string is the option's meaning. ``rules`` yields what relates several fields: the key that is wrong, whether the
rule holds, and the rule; a later rule may rely on those before it. An empty key means the table as a whole. A static
method ``complete`` adds to a table that is read what follows from its other keys.

msgspec would do the first half, and a node would stay light: 0.7 MB installed, 0.8 MB of memory, wheels for aarch64
and Python 3.11 to 3.13. But its errors name neither the value nor the choices nor the nearest name ("Invalid enum
value 'coactivation' - at `$.kind`"), it accepts NaN where no range is given, it checks files only and not objects
that a program makes, and its choices are literals, which a registry is not. What would remain to be written is what
is here.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from nonn.errors import ConfigError

__all__ = [
    "Choice",
    "Constraint",
    "Count",
    "Field",
    "Matches",
    "NotEmpty",
    "NotNegative",
    "Positive",
    "Probability",
    "Range",
    "Rules",
    "Share",
    "Whole",
    "check",
    "check_rules",
    "choices",
    "describe",
    "did_you_mean",
    "fields_of",
    "kind_of",
    "shown",
    "unpack",
]

# (key, whether the rule holds, the rule)
Rules = Iterator[tuple[str, object, str]]


class Constraint(Protocol):
    """A limit on one value; ``str()`` is what it allows, for listings; those of a ``Choice`` are its names."""

    def broken(self, value: Any) -> str:
        """What the value must be; empty if it is."""
        ...


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number. NaN lies outside of all, infinity is no number of a file.

    Attributes:
        ge: at least this.
        gt: more than this.
        le: at most this.
        lt: less than this.
        multiple_of: a multiple of this.
        why: the reason, for messages.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    multiple_of: int | None = None
    why: str = ""

    def broken(self, value: float) -> str:
        """What the value must be; empty if it is."""
        inside = (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )
        return "" if inside else f"must be {self._words()}" + f": {self.why}" * bool(self.why)

    def _words(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"between {self.ge:,} and {self.le:,}"
        bounds = {"at least": self.ge, "above": self.gt, "at most": self.le, "below": self.lt}
        words = [f"{word} {bound:,}" for word, bound in bounds.items() if bound is not None]
        return " and ".join(words + [f"a multiple of {self.multiple_of}"] * bool(self.multiple_of)) or "finite"

    def __str__(self) -> str:
        bounds = {"≥": self.ge, ">": self.gt, "≤": self.le, "<": self.lt}
        signs = [f"{sign} {bound:,}" for sign, bound in bounds.items() if bound is not None]
        return ", ".join(signs + [f"a multiple of {self.multiple_of}"] * bool(self.multiple_of))


@dataclass(frozen=True)
class Choice:
    """A name from a registry, which is imported when a value is checked: registries lie above the configuration.

    Attributes:
        registry: ``package.module:NAME`` of a mapping or sequence of names.
        besides: further names.
    """

    registry: str
    besides: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        module, _, name = self.registry.partition(":")
        return (*self.besides, *getattr(importlib.import_module(module), name))

    def broken(self, value: str) -> str:
        """What the value must be; empty if it is."""
        return "" if value in self.names else f"unknown; {did_you_mean(value, self.names)}"


@dataclass(frozen=True)
class Matches:
    """Text of a pattern.

    Attributes:
        pattern: regular expression of the whole text.
        words: the same for people.
    """

    pattern: str
    words: str

    def broken(self, value: str) -> str:
        """What the value must be; empty if it is."""
        return "" if re.fullmatch(self.pattern, value) else f"must consist of {self.words}"

    def __str__(self) -> str:
        return f"of {self.words}"


@dataclass(frozen=True)
class NotEmpty:
    """Text or a list that holds something."""

    def broken(self, value: str | tuple[object, ...]) -> str:
        """What the value must be; empty if it is."""
        return "" if value else "must not be empty"

    def __str__(self) -> str:
        return "not empty"


Whole = Annotated[int, Range(ge=0)]
Count = Annotated[int, Range(ge=1)]
Positive = Annotated[float, Range(gt=0)]
NotNegative = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]
Probability = Annotated[float, Range(ge=0, lt=1)]


@dataclass(frozen=True)
class Field:
    """A field as it is declared.

    Attributes:
        hint: its type, with constraints.
        default: what it is where it is left out; ``dataclasses.MISSING`` if it must be given.
        meaning: for people.
    """

    hint: Any
    default: Any
    meaning: str


def fields_of(cls: type) -> Mapping[str, Field]:
    """The fields of a dataclass, by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {}
    for spec in dataclasses.fields(cls):
        factory = spec.default_factory
        default = spec.default if factory is dataclasses.MISSING else factory()
        meanings = [text for text in getattr(hints[spec.name], "__metadata__", ()) if isinstance(text, str)]
        found[spec.name] = Field(hints[spec.name], default, meanings[-1] if meanings else "")
    return found


def unpack(hint: Any) -> tuple[Any, list[Constraint]]:
    """A type without its annotations, and the constraints among those."""
    if typing.get_origin(hint) is not Annotated:
        return hint, []
    return hint.__origin__, [each for each in hint.__metadata__ if not isinstance(each, str)]


def choices(hint: Any, field: str = "") -> tuple[str, ...]:
    """The names that a value, or each of a list, may be; none where it is no choice.

    Args:
        hint: a type, or the class that has the field.
        field: its name.
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
    """What a value of a type may be, for people: "a whole number ≥ 1"."""
    bare, constraints = unpack(hint)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is tuple:
        return ", ".join(["a list", *map(str, constraints), f"each {describe(arguments[0])}"])
    if names := choices(hint):
        return f"one of {', '.join(names)}" if len(names) > 1 else repr(names[0])
    return " ".join([kind_of(bare), *map(str, constraints)])


def kind_of(bare: Any) -> str:
    """The kind of value that a type is, for people."""
    return _KINDS.get(typing.get_origin(bare) or bare, "a table")


def check(config: Any, label: str = "") -> None:
    """Checks an object that a program made; a default is never wrong.

    Args:
        config: an object of a dataclass without lists or tables, usually from its ``__post_init__``.
        label: put before every message.

    Raises:
        ConfigError: names the field, its value and what it may be.
    """
    for name, field in fields_of(type(config)).items():
        value = getattr(config, name)
        for constraint in unpack(field.hint)[1]:
            if value != field.default and (rule := constraint.broken(value)):
                raise ConfigError(f"{label}{name} = {shown(value)}: {rule}")
    check_rules(config, label)


def check_rules(config: Any, prefix: str = "") -> None:
    """Checks what relates several fields of an object.

    Args:
        config: an object of a dataclass, with or without ``rules``.
        prefix: put before every key.

    Raises:
        ConfigError: as ``check``.
    """
    rules: Rules = config.rules() if hasattr(config, "rules") else iter(())
    for key, holds, rule in rules:
        if not holds and not key:
            raise ConfigError(f"{prefix.rstrip('.')}: {rule}")
        if not holds:
            raise ConfigError(f"{prefix}{key} = {shown(_value_at(config, key))}: {rule}")


def did_you_mean(value: str, names: Iterable[str], what: str = "choose one of", prefix: str = "") -> str:
    """The nearest name with a prefix, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(value, names, n=1)
    return f"did you mean '{prefix}{near[0]}'?" if near else f"{what}: {', '.join(names) or '(there is none)'}"


def _value_at(config: Any, key: str) -> Any:
    """The value at a path such as ``fault[0].nodes``."""
    for name in re.findall(r"\w+", key):
        config = config[int(name)] if name.isdigit() else getattr(config, name)
    return config


def shown(value: Any) -> str:
    """A value in a message."""
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, tuple | list) else repr(value)


_KINDS: Mapping[Any, str] = {
    tuple: "a list",
    float: "a number",
    int: "a whole number",
    str: "a string",
    bool: "true or false",
    Literal: "a string",
}
