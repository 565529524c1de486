"""Types of command-line arguments, for all three programs.

A value that is wrong on the command line, and a file or folder named there that does not exist, are wrong usage: exit
code 2, before anything is read. systemd does not restart a service that ends with it. What is wrong inside a file is
exit code 3.

Options that set a field of an option class take limits, meaning and default from it (``add_field``), and ``from_args``
builds the object. The class is imported only when such an option is given or explained, since every command builds the
parsers of all.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from nonn.toml.declarations import Declaration

__all__ = [
    "FieldParser",
    "FieldType",
    "add_field",
    "addresses",
    "count",
    "existing",
    "from_args",
    "is_missing",
    "not_negative",
    "path",
    "port",
    "seconds",
    "share",
    "usage",
    "whole",
]

T = TypeVar("T")


class FieldType:
    """Type of an option that sets a field of an option class.

    Args:
        path: ``package.module:Class.field``.
        unit: the option's unit in that of the field: 1e-3 for milliseconds of a field in seconds.
    """

    def __init__(self, path: str, unit: float = 1.0) -> None:
        self._path, self._unit = path, unit

    def __call__(self, text: str) -> float:
        """The value of the field, within its limits."""
        from nonn.toml.declarations import unpack

        bare, constraints = unpack(self._declaration.hint)
        value = _whole(text) * int(self._unit) if bare is int else self._unit * _number(text)
        for constraint in constraints:
            if rule := constraint.broken(value):
                raise ArgumentTypeError(f"{text}: {rule}")
        return value

    def explain(self) -> str:
        """Meaning and default of the field, for a help page."""
        default = self._declaration.default
        shown = "" if default is None else f" (default: {default / self._unit:g})"
        return (self._declaration.meaning + shown).replace("%", "%%")

    @property
    def _declaration(self) -> Declaration:
        import pkgutil

        from nonn.toml.declarations import fields_of

        cls, _, name = self._path.rpartition(".")
        return fields_of(pkgutil.resolve_name(cls))[name]


class FieldParser(argparse.ArgumentParser):
    """A parser whose help pages have the meanings and defaults of fields."""

    def format_help(self) -> str:
        """The help page."""
        for action in self._actions:
            if isinstance(action.type, FieldType):
                action.help = action.type.explain()
        return super().format_help()


def add_field(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, option: str, path: str, metavar: str, unit: float = 1.0
) -> None:
    """Adds an option that sets a field of an option class; path and unit as of ``FieldType``."""
    parser.add_argument(option, dest=path.rpartition(".")[2], type=FieldType(path, unit), metavar=metavar)


def from_args(cls: type[T], args: argparse.Namespace) -> T:
    """An object of an option class from the arguments that have the names of its fields; None is the default.

    Raises:
        ConfigError: the object is invalid.
    """
    from nonn.toml.declarations import fields_of

    given = {name: vars(args).get(name) for name in fields_of(cls)}
    return cls(**{name: value for name, value in given.items() if value is not None})


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """In the block, a wrong configuration is wrong usage: its texts are options of the command line.

    Raises:
        UsageError: with the message of the error.
    """
    from nonn.errors import ConfigError, UsageError

    try:
        yield
    except ConfigError as exc:
        raise UsageError(str(exc)) from exc


def path(text: str) -> Path:
    """A file or folder, which need not exist; an empty text, as of an unset variable, would be the working folder."""
    if not text:
        raise ArgumentTypeError("the path is empty; write . for the current folder")
    return Path(text)


def existing(text: str) -> Path:
    """A file or folder that exists."""
    if is_missing(found := path(text)):
        raise ArgumentTypeError(f"{text}: no such file or folder")
    return found


def is_missing(file: Path) -> bool:
    """Whether there is no such file or folder; false if that cannot be seen: reading it reports why."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def port(text: str) -> int:
    """A port; 0 is any free one."""
    value = _whole(text)
    if not 0 <= value < 65536:
        raise ArgumentTypeError(f"{text}: must be 1 to 65535, or 0 for any free port")
    return value


def addresses(text: str) -> str:
    """``host:port``, or several with commas."""
    from nonn.errors import ConfigError
    from nonn.rpc.address import split_addresses

    try:
        return ",".join(split_addresses(text))
    except ConfigError as exc:
        raise ArgumentTypeError(str(exc)) from None


def count(text: str) -> int:
    """A whole number of 1 or more."""
    return whole(1)(text)


def whole(least: int, greatest: int | None = None) -> Callable[[str], int]:
    """The type of whole numbers in a range, both ends included."""

    def parse(text: str) -> int:
        value = _whole(text)
        if value < least or (greatest is not None and value > greatest):
            limits = f"at least {least}" if greatest is None else f"between {least} and {greatest:,}"
            raise ArgumentTypeError(f"{text}: must be {limits}")
        return value

    return parse


def share(text: str) -> float:
    """A number from 0 to 1, such as an accuracy."""
    value = not_negative(text)
    if value > 1:
        raise ArgumentTypeError(f"{text}: must be between 0 and 1")
    return value


def seconds(text: str) -> float:
    """A positive time."""
    value = not_negative(text)
    if not value:
        raise ArgumentTypeError(f"{text}: must be more than 0")
    return value


def not_negative(text: str) -> float:
    """A finite number of 0 or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text}: must be a number of 0 or more")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text}: not a number") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text}: not a whole number") from None
