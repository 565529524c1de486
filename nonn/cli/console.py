"""Progress on stderr: a line for each stage, and for its steps a bar on a terminal, lines elsewhere.

This module is a ``nonn.experiment.progress.Progress`` without times; commands pass a ``Terminal`` to the runs that they
start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nonn.experiment.progress import Tick

__all__ = ["Terminal", "bar", "say"]

LINE_S = 1.0  # least time between two lines about steps, so that short epochs do not fill a log

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


class Terminal:
    """Progress on stderr.

    Args:
        log_time: every line begins with date and time.
    """

    def __init__(self, *, log_time: bool = False) -> None:
        self._log_time = log_time

    def say(self, text: str, /) -> None:
        """Prints a line, above a running bar."""
        when = time.strftime("%Y-%m-%d %H:%M:%S ") if self._log_time else ""
        _stderr.print(when + text, markup=False)

    @contextlib.contextmanager
    def bar(self, description: str, total: int, unit: str = "", /) -> Iterator[Tick]:
        """Shows a progress bar while the block runs, then one line with the time it took.

        Without a terminal, it prints a line for each step with the time that is left, at most one per second.

        Yields:
            A function to call with the number of finished steps and a note such as the current loss.
        """
        started, last = time.monotonic(), ""
        printed, before = started, -1
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
                nonlocal last, printed, before
                last = remark
                progress.update(task, completed=done, remark=remark)
                before = done - 1 if before < 0 else before  # a resumed training does not begin at 0
                now = time.monotonic()
                if _stderr.is_terminal or done >= total or now < printed + LINE_S:
                    return
                printed = now
                left_s = (total - done) * (now - started) / max(1, done - before)
                self.say(f"{description}: {done}/{total} {unit}, {_duration(left_s)} left  {remark}".rstrip())

            yield tick
        self.say(f"{description}: {time.monotonic() - started:.1f} s {last}".rstrip())


def _duration(seconds: float) -> str:
    """A duration such as ``45 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_plain = Terminal()
say, bar = _plain.say, _plain.bar
