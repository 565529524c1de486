"""Constraints of one value, with their texts for error messages and listings."""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from nonn.toml.registry import Registry, did_you_mean

__all__ = [
    "Choice",
    "Constraint",
    "Count",
    "Matches",
    "NotEmpty",
    "NotNegative",
    "Positive",
    "Probability",
    "Range",
    "Rules",
    "Share",
    "Whole",
    "did_you_mean",
]

# (key, whether the rule holds, the rule)
Rules = Iterator[tuple[str, object, str]]


class Constraint(Protocol):
    """A limit on one value; ``str()`` describes the allowed values in listings, except those of a ``Choice``."""

    def broken(self, value: Any) -> str:
        """The rule that a value breaks; empty if it is valid."""
        ...


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number. NaN is outside of all bounds; infinity is not allowed in a file.

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
        """The rule that a value breaks; empty if it is valid."""
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
    """A name from a registry, imported when a value is checked, since registries import the configuration.

    Attributes:
        registry: ``package.module:NAME`` of a ``Registry``, or of a mapping or sequence of names.
        besides: further names.
    """

    registry: str
    besides: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (*self.besides, *self._found)

    def broken(self, value: str) -> str:
        """The rule that a value breaks; empty if it is valid."""
        if value in self.besides:
            return ""
        if isinstance(self._found, Registry):
            return self._found.broken(value)
        return "" if value in self.names else f"unknown; {did_you_mean(value, self.names)}"

    @property
    def is_open(self) -> bool:
        """Whether ``package.module:name`` is allowed, too."""
        return isinstance(self._found, Registry)

    @property
    def _found(self) -> Registry[Any] | Mapping[str, Any] | tuple[str, ...]:
        found: Registry[Any] | Mapping[str, Any] | tuple[str, ...] = pkgutil.resolve_name(self.registry)
        return found


@dataclass(frozen=True)
class Matches:
    """Text that matches a pattern.

    Attributes:
        pattern: regular expression of the whole text.
        words: description of the pattern for messages.
    """

    pattern: str
    words: str

    def broken(self, value: str) -> str:
        """The rule that a value breaks; empty if it is valid."""
        return "" if re.fullmatch(self.pattern, value) else f"must consist of {self.words}"

    def __str__(self) -> str:
        return f"of {self.words}"


@dataclass(frozen=True)
class NotEmpty:
    """Text or a list that is not empty."""

    def broken(self, value: str | tuple[object, ...]) -> str:
        """The rule that a value breaks; empty if it is valid."""
        return "" if value else "must not be empty"

    def __str__(self) -> str:
        return "not empty"


Whole = Annotated[int, Range(ge=0)]
Count = Annotated[int, Range(ge=1)]
Positive = Annotated[float, Range(gt=0)]
NotNegative = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]
Probability = Annotated[float, Range(ge=0, lt=1)]
