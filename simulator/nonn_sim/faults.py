"""What goes wrong and when: schedules, churn, shared fates and batteries, as SimPy processes.

SimPy advances only from one change of the world to the next; requests between two changes are the engine's business.
Everything that happens is written down as ``FaultEvent``; a log of them, of a simulation or of a real night in the
field, can take the place of all the processes (``nonn-sim replay``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from nonn.errors import ConfigError, DataError
from nonn.files import atomic_file
from nonn_sim.links import FAULTS
from nonn_sim.scenario import FAULT_ENDS, Fault, Scenario

__all__ = ["Condition", "FaultEvent", "State", "World", "read_log", "write_log"]

# The aggregator tries a lost connection again after at most this long (its channel options); where in that time the
# device comes back is chance.
RECONNECT_S = 0.5
BATTERY_STEP_S = 1.0  # a battery that is empty is noticed no later than this

# Other people's logs say up and down.
_ALIASES = {"down": "off", "up": "on"}


@dataclass(frozen=True)
class FaultEvent:
    """Something that happened to a device.

    Attributes:
        time_s: since the start of the run.
        node: device.
        event: a kind of fault, or what ends it; see ``FAULT_ENDS``.
        value: seconds, for ``delay``.
        cell: of a fleet.
    """

    time_s: float
    node: int
    event: str
    value: float = 0.0
    cell: int = 0


class State(IntEnum):
    """What a request meets at a device."""

    UP = 0
    FROZEN = 1  # silent; what it holds goes on later
    REFUSING = 2  # fails at once
    OFF = 3  # silent; what it held is lost


class Condition:
    """All that is wrong with one device.

    Attributes:
        corrupt: its replies cannot be used.
        delay_s: its exchanges take so much longer.
        reconnecting: it is back, and the aggregator has not found it yet.
    """

    __slots__ = ("_counts", "corrupt", "delay_s", "reconnecting")

    def __init__(self) -> None:
        self._counts = {"kill": 0, "stop": 0, "off": 0, "partition": 0}
        self.corrupt, self.delay_s, self.reconnecting = False, 0.0, False

    def apply(self, event: str, value: float) -> None:
        """Starts or ends one fault; faults of one kind that overlap end when the last one does."""
        if event in self._counts:
            self._counts[event] += 1
        elif event in _STARTS and _STARTS[event] in self._counts:
            kind = _STARTS[event]
            self._counts[kind] = max(0, self._counts[kind] - 1)
        elif event in ("corrupt", "clean"):
            self.corrupt = event == "corrupt"
        else:
            self.delay_s = value if event == "delay" else 0.0

    @property
    def state(self) -> State:
        """The worst of what is wrong."""
        counts = self._counts
        if counts["off"]:
            return State.OFF
        if counts["kill"] or counts["partition"] or self.reconnecting:
            return State.REFUSING
        return State.FROZEN if counts["stop"] else State.UP


_STARTS = {end: start for start, end in FAULT_ENDS.items()}

OnChange = Callable[[int, int, State, State], None]  # cell, device, before, after
UsedJoules = Callable[[int, int], float]  # cell, device → by requests so far


class World:
    """The devices of all cells and what happens to them.

    Args:
        scenario: with its schedule, churn and batteries.
        num_devices: N.
        seed: of the run.
        on_change: called when something has happened to a device, with its state before and after.
        used_j: what requests have cost a device so far, for batteries.
        events: happen in place of schedule, churn and batteries.
    """

    def __init__(
        self,
        scenario: Scenario,
        num_devices: int,
        seed: int,
        on_change: OnChange,
        used_j: UsedJoules = lambda cell, device: 0.0,
        events: Sequence[FaultEvent] | None = None,
    ) -> None:
        self.env: Any = simpy.Environment()
        self.log: list[FaultEvent] = []
        self.conditions = [[Condition() for _ in range(num_devices)] for _ in range(scenario.fleet.cells)]
        self._off_since: dict[tuple[int, int], float] = {}
        self._off_s: dict[tuple[int, int], float] = {}
        self._on_change, self._used_j, self._seed = on_change, used_j, seed
        self._reconnects = np.random.default_rng([seed, FAULTS, 0])
        self._nodes = scenario.devices(num_devices)
        if events is not None:
            self._replay(events, scenario)
            return
        for fault in scenario.faults:
            for cell in fault.cells or range(scenario.fleet.cells):
                for device in scenario.targets(fault):
                    self.env.process(self._scheduled(fault, cell, device))
        for cell in range(scenario.fleet.cells):
            for number, group in enumerate(scenario.groups):
                if group.mtbf_s:
                    rng = np.random.default_rng([seed, FAULTS, 1, cell, number])
                    self.env.process(self._churn(cell, group.nodes, group.mtbf_s, group.mttr_s, rng))
            for device, node in enumerate(self._nodes):
                if node.mtbf_s:
                    rng = np.random.default_rng([seed, FAULTS, 2, cell, device])
                    self.env.process(self._churn(cell, (device,), node.mtbf_s, node.mttr_s, rng))
                if node.battery_j:
                    self.env.process(self._battery(cell, device))

    def on_s(self, cell: int, device: int, now: float) -> float:
        """How long a device has been on, from the start until now."""
        key = (cell, device)
        off_since = self._off_since.get(key)
        return now - self._off_s.get(key, 0.0) - (max(0.0, now - off_since) if off_since is not None else 0.0)

    def apply(self, event: FaultEvent) -> None:
        """Makes something happen now."""
        self.log.append(event)
        cell, device, now = event.cell, event.node, self.env.now
        condition = self.conditions[cell][device]
        before = condition.state
        condition.apply(event.event, event.value)
        gone = (State.REFUSING, State.OFF)
        if before in gone and condition.state not in gone:
            condition.reconnecting = True
            wait = self.env.timeout(self._reconnects.uniform(0, RECONNECT_S))
            wait.callbacks.append(lambda _: self._reconnected(cell, device))
        after, key = condition.state, (cell, device)
        if after is State.OFF and before is not State.OFF:
            self._off_since[key] = now
        elif before is State.OFF and after is not State.OFF:
            self._off_s[key] = self._off_s.get(key, 0.0) + now - self._off_since.pop(key)
        self._on_change(cell, device, before, after)

    def _reconnected(self, cell: int, device: int) -> None:
        condition = self.conditions[cell][device]
        before, condition.reconnecting = condition.state, False
        self._on_change(cell, device, before, condition.state)

    def _scheduled(self, fault: Fault, cell: int, device: int) -> Generator[Any, Any, None]:
        """One fault of the schedule, once or again and again."""
        at_s = fault.at_s
        lasting_s = fault.for_s + (self._nodes[device].restart_s if fault.kind == "kill" else 0.0)
        while True:
            yield self.env.timeout(max(0.0, at_s - self.env.now))
            self.apply(FaultEvent(self.env.now, device, fault.kind, fault.delay_s, cell))
            if fault.for_s:
                yield self.env.timeout(lasting_s)
                self.apply(FaultEvent(self.env.now, device, FAULT_ENDS[fault.kind], 0.0, cell))
            if not fault.every_s:
                return
            at_s += fault.every_s

    def _churn(
        self, cell: int, devices: Sequence[int], mtbf_s: float, mttr_s: float, rng: np.random.Generator
    ) -> Generator[Any, Any, None]:
        """Up and down for ever, all these devices together."""
        while True:
            for mean_s, event in ((mtbf_s, "off"), (mttr_s, "on")):
                yield self.env.timeout(rng.exponential(mean_s))
                for device in devices:
                    self.apply(FaultEvent(self.env.now, device, event, 0.0, cell))

    def _battery(self, cell: int, device: int) -> Generator[Any, Any, None]:
        """Waits until the battery is empty, looking as often as the greatest possible drain makes necessary."""
        node = self._nodes[device]
        looked_at, looked_j = 0.0, 0.0
        while True:
            used_j = self._used_j(cell, device) + node.idle_w * self.on_s(cell, device, self.env.now)
            left_j = node.battery_j - used_j
            if left_j <= 0:
                self.apply(FaultEvent(self.env.now, device, "off", 0.0, cell))
                return
            # Twice the drain since the last look: a steady drain is met after a handful of looks.
            drain_w = 2 * (used_j - looked_j) / (self.env.now - looked_at) if self.env.now > looked_at else 0.0
            looked_at, looked_j = self.env.now, used_j
            yield self.env.timeout(max(BATTERY_STEP_S, left_j / drain_w if drain_w else BATTERY_STEP_S))

    def _replay(self, events: Sequence[FaultEvent], scenario: Scenario) -> None:
        """Schedules recorded events; all of them from time 0, so that their times are met to the last bit."""
        for event in events:
            if not event.cell < scenario.fleet.cells or not event.node < len(self._nodes):
                raise ConfigError(
                    f"fault log: cell {event.cell}, node {event.node}: the scenario has {scenario.fleet.cells} cells "
                    f"and the bundle {len(self._nodes)} devices"
                )
            timer = self.env.timeout(event.time_s, event)
            timer.callbacks.append(lambda done: self.apply(done.value))


def write_log(path: Path, events: Sequence[FaultEvent]) -> None:
    """Writes a fault log: CSV, or JSON lines if the name ends in .jsonl."""
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(asdict(event)) + "\n" for event in events)
            return
        writer = csv.DictWriter(file, ("time_s", "node", "event", "value", "cell"))
        writer.writeheader()
        writer.writerows(asdict(event) for event in events)


def read_log(path: Path) -> list[FaultEvent]:
    """Reads a fault log: CSV with a header, or JSON lines.

    Columns ``time_s``, ``node`` (a number, or a name that ends in one) and ``event``; ``value`` and ``cell`` may be
    left out. ``up`` and ``down`` are taken for ``on`` and ``off``. The order of the lines does not matter.

    Raises:
        DataError: the file is missing or cannot be read; the message names the line.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read ({exc})") from exc
    events = []
    for number, row in _rows(path, text):
        try:
            events.append(_event(row))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            reason = f"column {exc} is missing" if isinstance(exc, KeyError) else exc
            raise DataError(f"{path}, line {number}: {reason}; a line holds time_s, node and event") from exc
    if not events:
        raise DataError(f"{path}: no event; a line holds time_s, node and event")
    return sorted(events, key=lambda event: event.time_s)


def _rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Each line's number and what it holds; JSON that cannot be parsed is None."""
    lines = text.splitlines()
    if path.suffix != ".jsonl":
        reader = csv.DictReader(lines)
        for row in reader:
            yield reader.line_num, row
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _event(row: dict[str, Any]) -> FaultEvent:
    """One line of a log."""
    kind = _ALIASES.get(str(row["event"]), str(row["event"]))
    if kind not in FAULT_ENDS and kind not in _STARTS:
        raise ValueError(f"unknown event '{kind}'; known: {', '.join((*FAULT_ENDS, *_STARTS, *_ALIASES))}")
    node = str(row["node"]).rpartition("-")[2]
    event = FaultEvent(float(row["time_s"]), int(node), kind, float(row.get("value") or 0), int(row.get("cell") or 0))
    if not isfinite(event.time_s) or event.time_s < 0 or event.value < 0 or event.cell < 0:
        raise ValueError("times, values and cells must not be negative")
    return event
