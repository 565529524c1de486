"""The wall clock of an aggregator and its nodes jumps by hours and years, back and forth.

``clock.c`` is compiled and preloaded; it moves the wall clock of these processes while they run. Monotonic clocks go
on, as after a correction by NTP or by hand. Deadlines, leases, breakers and quarantines must not depend on it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import slow, storm
from benchmarks.endurance import DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.client import Client

__all__ = ["SECTIONS"]

SOURCE = Path(__file__).with_name("clock.c")
DAY_S = 86_400
JUMPS_S = (DAY_S, -DAY_S, 0, 3600, -3600, 3650 * DAY_S, -3650 * DAY_S, 0)
PERIOD_S = 3.0


def _clock(ground: Ground) -> Figures:
    if platform.machine() != "x86_64" or not shutil.which("gcc"):
        return {"clock_skipped": "needs gcc on x86-64"}
    library, moved = ground.folder / "clock.so", ground.folder / "clock"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True)
    moved.write_bytes(bytes(8))
    settings = {"LD_PRELOAD": str(library), "NONN_CLOCK": str(moved)}
    records = list[storm.Record]()
    with contextlib.ExitStack() as stack:
        with _environment(settings):
            site = stack.enter_context(storm.site(ground.bundle, DEADLINE_S, ground.args.seed))
        assert str(library) in Path(f"/proc/{site.pid}/maps").read_text(), "the aggregator has its own clock"
        client = stack.enter_context(Client(site.address, slow.CLIENT_DEADLINE_S))
        slow.period(client, ground.inputs, ground.args.concurrency, slow.SETTLE_S)
        for jump_s in JUMPS_S:
            with moved.open("r+b") as file:  # in place: the processes have it in memory
                file.write(jump_s.to_bytes(8, sys.byteorder, signed=True))
            records += slow.period(client, ground.inputs, ground.args.concurrency, PERIOD_S)
        nodes = client.metadata().nodes
    return {
        "clock_jumps": len(JUMPS_S),
        "clock_requests": len(records),
        "clock_failed": sum(record.answer is None for record in records),
        "clock_failures": reasons(records),
        "clock_degraded": sum(record.answer is not None and record.answer.degraded for record in records),
        "clock_nodes_not_up": [node["id"] for node in nodes if node["state"] != "up"],
    }


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Variables for processes that start in the block."""
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


SECTIONS = (
    Section(
        "clock",
        _clock,
        {
            "a clock that jumps fails no request": lambda f: "clock_skipped" in f or f["clock_failed"] == 0,
            "a clock that jumps is blamed on no node": lambda f: (
                "clock_skipped" in f or (f["clock_degraded"] == 0 and not f["clock_nodes_not_up"])
            ),
        },
    ),
)
