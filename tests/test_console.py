"""Progress where no bar can be shown: in a log."""

from __future__ import annotations

import re

import pytest

from nonn.cli import console
from nonn.cli.console import Terminal


def test_without_a_terminal_each_step_is_a_line_with_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter((0.0, 100.0, 200.0, 200.5, 500.0, 500.0))  # begin, four steps, end
    monkeypatch.setattr("nonn.cli.console.time.monotonic", lambda: next(now))
    with console.bar("students", 8, "epochs") as tick:
        tick(4, "ce 0.900")  # the first of this process: it goes on from a checkpoint
        tick(5, "ce 0.800")
        tick(6, "ce 0.700")  # too soon for another line
        tick(8, "ce 0.500")
    assert capsys.readouterr().err.splitlines() == [
        "students: 4/8 epochs, 7 min left  ce 0.900",
        "students: 5/8 epochs, 5 min left  ce 0.800",
        "students: 500.0 s ce 0.500",
    ]


def test_lines_may_have_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(log_time=True).say("data [x]")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d data \[x\]\n", capsys.readouterr().err)
