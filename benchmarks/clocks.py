"""The wall clock of an aggregator and its nodes jumps by hours and years, back and forth.

``clock.c`` is compiled and preloaded; it moves the wall clock of these processes while they run. Monotonic clocks go
on, as after a correction by NTP or by hand. Deadlines, leases, breakers and quarantines must not depend on it.

The nodes have joined, with leases as short as the time between two jumps: first in plain text, then with TLS. There the
clock jumps within the validity of the certificates, which follow it: outside it no new connection is accepted.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import slow, storm
from benchmarks.endurance import DEADLINE_S
from benchmarks.joins import SILENT, START_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.client import Client
from nonn.security.authority import Authority
from tests.fleets import Fleet, members
from tests.serving import until

__all__ = ["SECTIONS"]

SOURCE = Path(__file__).with_name("clock.c")
DAY_S = 86_400
JUMPS_S = (DAY_S, -DAY_S, 0, 3600, -3600, 3650 * DAY_S, -3650 * DAY_S, 0)
VALID_S = (DAY_S, -DAY_S, 3600, 0)  # of certificates that are valid since two days
PERIOD_S = LEASE_S = 3.0


def _clock(ground: Ground) -> Figures:
    if platform.machine() != "x86_64" or not shutil.which("gcc"):
        return {"clock_skipped": "needs gcc on x86-64"}
    library, moved = ground.folder / "clock.so", ground.folder / "clock"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True)
    moved.write_bytes(bytes(8))
    with _environment({"LD_PRELOAD": str(library), "NONN_CLOCK": str(moved)}):
        runs = [_joined(ground, moved, jumps, secure=secure) for secure, jumps in ((False, JUMPS_S), (True, VALID_S))]
    records = [record for run in runs for record in run.records]
    return {
        "clock_jumps": len(JUMPS_S) + len(VALID_S),
        "clock_requests": len(records),
        "clock_failed": sum(record.answer is None for record in records),
        "clock_failures": reasons(records),
        "clock_degraded": sum(record.answer is not None and record.answer.degraded for record in records),
        "clock_nodes_not_up": [node for run in runs for node in run.not_up],
        "clock_leases_ended": sum(run.leases_ended for run in runs),
    }


class _Run(NamedTuple):
    records: list[storm.Record]
    not_up: list[str]
    leases_ended: int


def _joined(ground: Ground, moved: Path, jumps_s: Sequence[int], *, secure: bool) -> _Run:
    """Clients of an aggregator whose nodes have joined, while the clock jumps."""
    nodes, records = [f"node-{i}" for i in range(ground.bundle.num_devices)], list[storm.Record]()
    with contextlib.ExitStack() as stack:
        fleet = Fleet(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn-clocks-"))), stack)
        of, tls = _authority(fleet.folder / "certs", nodes) if secure else (lambda name: (), None)
        options = ("--lease", LEASE_S, "--deadline", DEADLINE_S)
        running, address = fleet.aggregator(ground.bundle, *of("aggregator/main"), *options)
        maps = Path(f"/proc/{running.child.pid}/maps").read_text()
        assert "clock.so" in maps, "the aggregator has its own clock"
        for name in nodes:
            fleet.node(name, address, options=of(f"node/{name}"))
        client = stack.enter_context(Client(address, slow.CLIENT_DEADLINE_S, tls=tls))
        until(lambda: len(members(client)) == len(nodes), START_S)
        slow.period(client, ground.inputs, ground.args.concurrency, slow.SETTLE_S)
        for jump_s in jumps_s:
            with moved.open("r+b") as file:  # in place: the processes have it in memory
                file.write(jump_s.to_bytes(8, sys.byteorder, signed=True))
            records += slow.period(client, ground.inputs, ground.args.concurrency, PERIOD_S)
        not_up = sorted(set(nodes) - members(client).keys())
        return _Run(records, not_up, running.log.read_text().count(SILENT))


def _authority(path: Path, nodes: Sequence[str]) -> tuple[Callable[[str], tuple[Any, ...]], Path]:
    """Options of a process by its identity, and the folder of a client; valid since two days."""
    authority = Authority.create(path, clock=lambda: datetime.now(UTC) - timedelta(days=2))
    for role, name in (("aggregator", "main"), ("client", "alice"), *(("node", name) for name in nodes)):
        authority.issue(role, name)
    return lambda name: ("--tls", path / name), path / "client" / "alice"


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
            # Absent from results of nodes without leases.
            "a clock that jumps ends no lease": lambda f: f.get("clock_leases_ended", 0) == 0,
        },
    ),
)
