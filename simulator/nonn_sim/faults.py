"""Faults over time: schedules, churn, groups that fail together and batteries, as SimPy processes.

SimPy advances only from one change of the world to the next; the engine processes the requests between two changes.
Every fault is recorded as a ``FaultEvent``; a log of them, from a simulation or from the field, can replace all
processes (``nonn-sim replay``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from math import gamma, isfinite, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from nonn.errors import ConfigError, DataError
from nonn.files import atomic_file
from nonn_sim.links import FAULTS
from nonn_sim.scenario import FAULT_ENDS, Scenario, ScheduledFault

__all__ = ["AggregatorHosts", "Condition", "FaultEvent", "State", "World", "read_log", "write_log"]

# The aggregator retries a lost connection after at most this long (its channel options); the moment within that time at
# which a device reconnects is random.
RECONNECT_S = 0.5
BATTERY_STEP_S = 1.0  # an empty battery is detected after at most this long

# Other logs use up and down.
_ALIASES = {"down": "off", "up": "on"}


@dataclass(frozen=True)
class FaultEvent:
    """The start or end of a fault of a device.

    Attributes:
        time_s: time since the start of the run, in seconds.
        node: number of the device.
        event: a kind of fault, or the event that ends it; see ``FAULT_ENDS``.
        value: seconds, for ``delay``.
        cell: number of the cell in a fleet.
    """

    time_s: float
    node: int
    event: str
    value: float = 0.0
    cell: int = 0


class State(IntEnum):
    """State of a device, as seen by a request."""

    UP = 0
    FROZEN = 1  # silent; its jobs continue later
    REFUSING = 2  # fails at once
    OFF = 3  # silent; its jobs are lost


class Condition:
    """The current faults of one device.

    Attributes:
        corrupt: its replies are unusable.
        delay_s: additional time of its exchanges.
        reconnecting: it is up again, but the aggregator has not reconnected yet.
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
        """The worst state of all current faults."""
        counts = self._counts
        if counts["off"]:
            return State.OFF
        if counts["kill"] or counts["partition"] or self.reconnecting:
            return State.REFUSING
        return State.FROZEN if counts["stop"] else State.UP


_STARTS = {end: start for start, end in FAULT_ENDS.items()}

OnChange = Callable[[int, int, State, State], None]  # cell, device, before, after
UsedJoules = Callable[[int, int], float]  # cell, device → energy used by requests so far


def _times(rng: np.random.Generator, mean_s: float, *, shape: float = 1.0, cv: float = 0.0) -> Iterator[float]:
    """Endless times with a mean: Weibull of a shape, log-normal of a coefficient of variation, or exponential."""
    sigma2, scale_s = log(1 + cv * cv), mean_s / gamma(1 + 1 / shape)
    while True:
        if cv:
            yield float(rng.lognormal(log(mean_s) - sigma2 / 2, sqrt(sigma2)))
        else:
            yield float(rng.exponential(mean_s) if shape == 1 else scale_s * rng.weibull(shape))


class World:
    """The devices of all cells and their faults.

    Args:
        scenario: the scenario, with schedule, churn and batteries.
        num_devices: N of the bundle.
        seed: seed of the run.
        on_change: called after an event of a device, with its state before and after.
        used_j: energy that requests have cost a device so far, for batteries.
        events: recorded events, instead of schedule, churn and batteries.
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
        self._nodes = scenario.devices(num_devices)
        self.conditions = [[Condition() for _ in self._nodes] for _ in range(scenario.fleet.cells)]
        self._off_since: dict[tuple[int, int], float] = {}
        self._off_s: dict[tuple[int, int], float] = {}
        self._on_change, self._used_j, self._seed = on_change, used_j, seed
        self._reconnects = np.random.default_rng([seed, FAULTS, 0])
        crews = scenario.fleet.repair_crews
        self._crews: Any = simpy.Resource(self.env, crews) if crews else None
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
                    up_s, down_s = _times(rng, group.mtbf_s), _times(rng, group.mttr_s)
                    self.env.process(self._churn(cell, group.nodes, up_s, down_s))
            for device, node in enumerate(self._nodes):
                if node.mtbf_s:
                    rng = np.random.default_rng([seed, FAULTS, 2, cell, device])
                    up_s = _times(rng, node.mtbf_s, shape=node.mtbf_shape)
                    self.env.process(self._churn(cell, (device,), up_s, _times(rng, node.mttr_s, cv=node.mttr_cv)))
                if node.battery_j:
                    self.env.process(self._battery(cell, device))

    def on_s(self, cell: int, device: int, now: float) -> float:
        """Total time that a device has been on, from the start until now."""
        key = (cell, device)
        off_since = self._off_since.get(key)
        return now - self._off_s.get(key, 0.0) - (max(0.0, now - off_since) if off_since is not None else 0.0)

    def apply(self, event: FaultEvent) -> None:
        """Applies an event now."""
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

    def _scheduled(self, fault: ScheduledFault, cell: int, device: int) -> Generator[Any, Any, None]:
        """One fault of the schedule, once or periodically."""
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
        self, cell: int, devices: Sequence[int], up_s: Iterator[float], repair_s: Iterator[float]
    ) -> Generator[Any, Any, None]:
        """Endless up and down periods of these devices, together; a repair may wait for a crew."""
        while True:
            yield self.env.timeout(next(up_s))
            self._apply_all("off", devices, cell)
            crew = self._crews.request() if self._crews else None
            if crew is not None:
                yield crew
            yield self.env.timeout(next(repair_s))
            if crew is not None:
                self._crews.release(crew)
            self._apply_all("on", devices, cell)

    def _apply_all(self, event: str, devices: Sequence[int], cell: int) -> None:
        for device in devices:
            self.apply(FaultEvent(self.env.now, device, event, 0.0, cell))

    def _battery(self, cell: int, device: int) -> Generator[Any, Any, None]:
        """Waits until the battery is empty, and checks as often as the greatest possible drain requires."""
        node = self._nodes[device]
        looked_at, looked_j = 0.0, 0.0
        while True:
            used_j = self._used_j(cell, device) + node.idle_w * self.on_s(cell, device, self.env.now)
            left_j = node.battery_j - used_j
            if left_j <= 0:
                self.apply(FaultEvent(self.env.now, device, "off", 0.0, cell))
                return
            # Twice the drain since the last check: a steady drain needs only a few checks.
            drain_w = 2 * (used_j - looked_j) / (self.env.now - looked_at) if self.env.now > looked_at else 0.0
            looked_at, looked_j = self.env.now, used_j
            yield self.env.timeout(max(BATTERY_STEP_S, left_j / drain_w if drain_w else BATTERY_STEP_S))

    def _replay(self, events: Sequence[FaultEvent], scenario: Scenario) -> None:
        """Schedules recorded events, all from time 0, so that their times are exact to the last bit."""
        for event in events:
            if not event.cell < scenario.fleet.cells or not event.node < len(self._nodes):
                raise ConfigError(
                    f"fault log: cell {event.cell}, node {event.node}: the scenario has {scenario.fleet.cells} cells "
                    f"and the bundle {len(self._nodes)} devices"
                )
            timer = self.env.timeout(event.time_s, event)
            timer.callbacks.append(lambda done: self.apply(done.value))


class AggregatorHosts:
    """The machines of a cell's aggregators, which fail and are repaired.

    Args:
        count: number of machines.
        mtbf_s: mean time up of each.
        mttr_s: mean time down.
        seed: seed of the run.
        cell: number of the cell.
    """

    def __init__(self, count: int, mtbf_s: float, mttr_s: float, seed: int, cell: int) -> None:
        self._means_s = (mttr_s, mtbf_s)
        self._rngs = [np.random.default_rng([seed, FAULTS, 3, cell, number]) for number in range(count)]
        self._up = [True] * count
        self._until = [float(rng.exponential(mtbf_s)) for rng in self._rngs]

    def up(self, now: float) -> bool:
        """Whether any is up at a time, which is not before that of the last call."""
        for number, rng in enumerate(self._rngs):
            while self._until[number] <= now:
                self._up[number] = not self._up[number]
                self._until[number] += float(rng.exponential(self._means_s[self._up[number]]))
        return any(self._up)


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

    Columns are ``time_s``, ``node`` (a number, or a name that ends in one) and ``event``; ``value`` and ``cell`` are
    optional. ``up`` and ``down`` are aliases of ``on`` and ``off``. The order of the lines does not matter.

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
    """Number and contents of each line; JSON that cannot be parsed is None."""
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
