"""Progress on stderr: a line for each stage, and a progress bar on a terminal.

This module is a ``nonn.experiment.progress.Progress``: commands pass it to the runs that they start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nonn.experiment.progress import Tick

__all__ = ["bar", "say"]

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, /) -> None:
    """Prints a line on stderr, above a running bar."""
    _stderr.print(text, markup=False)


@contextlib.contextmanager
def bar(description: str, total: int, unit: str = "", /) -> Iterator[Tick]:
    """Shows a progress bar while the block runs, then one line with the time it took.

    Yields:
        A function to call with the number of finished steps and a note such as the current loss.
    """
    started, last = time.monotonic(), ""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=_stderr, transient=True, disable=not _stderr.is_terminal) as progress:
        task = progress.add_task(description, total=total, remark="")

        def tick(done: int, remark: str = "") -> None:
            nonlocal last
            last = remark
            progress.update(task, completed=done, remark=remark)

        yield tick
    say(f"{description}: {time.monotonic() - started:.1f} s {last}".rstrip())
