"""Types of command-line arguments, for all three programs.

A value that is wrong on the command line, and a file or folder named there that does not exist, are wrong usage: exit
code 2, before anything is imported or read. systemd does not restart a service that ends with it. What is wrong inside
a file is exit code 3.
"""

from __future__ import annotations

import contextlib
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = [
    "addresses",
    "count",
    "existing",
    "is_missing",
    "not_negative",
    "path",
    "port",
    "seconds",
    "share",
    "usage",
    "whole",
]


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
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text}: not a number") from None
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text}: must be a number of 0 or more")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text}: not a whole number") from None
