"""Progress reports of a run: the library calls a ``Progress``, and the caller of the run decides what is shown.

``nonn.cli.console`` shows it on the terminal; ``Silent`` shows nothing and is the default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["Progress", "Silent", "Tick"]

Tick = Callable[[int, str], None]  # number of finished steps, a short note such as the current loss


class Progress(Protocol):
    """Receiver of the reports of a run. A module with these two functions is also one."""

    def say(self, text: str, /) -> None:
        """Reports one line: a stage's result or a decision."""
        ...

    def bar(self, description: str, total: int, unit: str = "", /) -> AbstractContextManager[Tick]:
        """Reports work of ``total`` steps while the block runs.

        Args:
            description: description of the work.
            total: number of steps.
            unit: name of the steps, in the plural.

        Returns:
            A context manager that yields the function to call after every step.
        """
        ...


class Silent:
    """Shows nothing."""

    def say(self, text: str, /) -> None:
        """Does nothing."""

    @contextlib.contextmanager
    def bar(self, description: str, total: int, unit: str = "", /) -> Iterator[Tick]:
        """Yields a function that does nothing."""
        yield lambda done, remark: None
