"""Nodes that sense, in virtual time: the objects of the aggregator on simulated clocks, links, sensors and batteries.

``Alignment``, its clock filters and ``DutyCycle`` are those that serve; only what surrounds them is simulated. A window
carries its number, so that a window that is fused with others of another time is found. Answers are those of the
bundle's recorded test features: each grid point shows one test sample to all units.

A unit sleeps between wake-ups. One wake-up runs the student, sends its window, and answers a probe of its clock, which
comes after a window; a unit that rests wakes up for probes alone.
Losses come in bursts of a two-state (Gilbert) link, which also loses probes. A sensor that fails sends "no data".

Limits: samples of successive windows are independent draws, so smoothing over time is not simulated; a lost message
costs its energy, but no retransmission; the aggregator needs no time.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.reliability.intervals import share_interval
from nonn.reliability.subsets import mask_of, members
from nonn.report.sensing import FRAME_BYTES, NOW_US, sensing_report
from nonn.rpc.v1 import sensing_pb2 as pb
from nonn.sensing.alignment import Alignment, AlignmentConfig, Point
from nonn.sensing.clocks import Exchange
from nonn.sensing.duty import DutyCycle
from nonn_sim.sensing_scenario import SensingScenario

__all__ = ["simulate_sensing"]

START = 1_700_000_000.0
PROBE_S, REST_PROBE_S = 2.0, 30.0  # as in nonn.aggregator.sensing.servicer
FIRST_PROBES, FIRST_S = 8, 0.05
NO_DATA_BYTES = pb.Publication(window=pb.WindowFeatures(no_data=pb.NO_DATA_FLAT)).ByteSize() + FRAME_BYTES
ECHO_BYTES = (
    pb.Publication(echo=pb.Echo(number=999, received_us=NOW_US, sent_us=NOW_US, battery=101)).ByteSize() + FRAME_BYTES
)


@dataclass(eq=False)
class _Unit:
    """One unit; energy in joules."""

    number: int
    offset_s: float
    drift: float
    energy: float
    phase: float | None = None
    next_end: float = inf  # on its clock
    lossy: bool = False
    flat_until: float = -inf
    at: float = START
    alive: bool = True
    rests: bool = False
    probes: int = 0
    asks: bool = False  # its clock is probed with the next window

    @property
    def name(self) -> str:
        return f"unit-{self.number}"

    def clock(self, now: float) -> float:
        """Its clock at a true time."""
        return now + self.offset_s + self.drift * (now - START)

    def true(self, shown: float) -> float:
        """The true time at which its clock shows something."""
        return START + (shown - START - self.offset_s) / (1 + self.drift)


class _World:
    """One run."""

    def __init__(self, scenario: SensingScenario, bundle: Bundle, goal: float) -> None:
        self.scenario, self.bundle, spec = scenario, bundle, bundle.manifest.sensing
        sizes = sensing_report(bundle)
        if spec is None or sizes is None:
            raise ConfigError(
                f"{bundle.path}: the bundle does not say what its nodes measure; build it again with a section "
                "[sensing] in the experiment file"
            )
        run, units, battery = scenario.sensing, scenario.units, scenario.battery
        num = bundle.num_devices
        if battery.charge and len(battery.charge) != num:
            raise ConfigError(f"battery.charge: {len(battery.charge)} values for {num} units of {bundle.path}")
        self.random = np.random.default_rng(run.seed)
        self.hop_s, self.window_bytes = spec.hop_s, sizes.message_bytes
        times = AlignmentConfig(hop_s=spec.hop_s, tolerance_s=spec.tolerance_s or None)
        self.alignment = Alignment[tuple[int, int]](times)
        warm_up = 3 + ceil(spec.window_s / spec.hop_s)
        self.duty = DutyCycle(bundle.table.accuracy, goal, run.duty_period_s, warm_up=warm_up) if goal else None
        wrong = self.random.uniform(-1, 1, (2, num))
        full = battery.joules or inf
        self.units = [
            _Unit(i, units.offset_s * wrong[0, i], 1e-6 * units.drift_ppm * wrong[1, i], full * charge)
            for i, charge in enumerate(battery.charge or (1.0,) * num)
        ]
        self.end_s = START + 3600 * run.hours
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self.counts, self.masks, self.right = Counter[str](), Counter[int](), Counter[int]()
        self.delays, self.empty = list[float](), list[float]()
        self.below: float | None = None  # when the stated accuracy last began to miss the goal
        self._sensed: dict[int, set[int]] = {}
        self._labels: dict[int, NDArray[np.bool_]] = {}
        self._wanted = run.accuracy_goal

    def later(self, at: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), what))

    def run(self) -> None:
        for unit in self.units:
            self.alignment.join(unit.name, unit.number, START)
            self.later(START + 0.01 * unit.number, lambda now, unit=unit: self._probe(unit, now))  # type: ignore[misc]
        self.later(START + self.hop_s, self._tick)
        while self._events and (event := heapq.heappop(self._events))[0] <= self.end_s:
            event[2](event[0])
        for unit in self.units:
            self._spend(unit, self.end_s, 0.0)

    def _delay(self) -> float:
        units = self.scenario.units
        return units.delay_s + float(self.random.exponential(units.jitter_s))

    def _spend(self, unit: _Unit, now: float, joules: float) -> bool:
        """Uses energy until now; returns whether the unit is alive."""
        if not unit.alive:
            return False
        unit.energy -= joules + 1e-3 * self.scenario.battery.idle_mw * max(0.0, now - unit.at)
        unit.at = max(unit.at, now)
        if unit.energy <= 0:
            unit.alive = False
            if self.below is None and not any(other.alive for other in self.units):
                self.below = now
            self.empty.append(now)
            self.alignment.leave(unit.name)
        return unit.alive

    def _probe(self, unit: _Unit, now: float) -> None:
        """The aggregator asks for the unit's clock, or will do so after its next window."""
        if unit.probes >= FIRST_PROBES and not unit.rests:
            unit.asks = True
        elif self._spend(unit, now, 1e-3 * self.scenario.battery.wake_mj):
            self.counts["wake-ups"] += 1
            self._ask(unit, now)

    def _ask(self, unit: _Unit, now: float) -> None:
        """An exchange of timestamps."""
        self.counts["bytes"] += ECHO_BYTES
        unit.probes, unit.asks = unit.probes + 1, False
        usual_s = REST_PROBE_S if unit.rests else PROBE_S
        self.later(now + (FIRST_S if unit.probes < FIRST_PROBES else usual_s), lambda at: self._probe(unit, at))
        if unit.lossy:
            return
        there, back = self._delay(), self._delay()
        received = unit.clock(now + there)
        arrived = now + there + back
        self.later(arrived, lambda at: self._echo(unit, Exchange(now, received, received, at), at))

    def _echo(self, unit: _Unit, times: Exchange, now: float) -> None:
        """The aggregator learns the clock, and the unit where windows end."""
        if not unit.alive:
            return
        self.alignment.exchange(unit.name, times)
        phase = self.alignment.phase(unit.name, now)
        if phase is None:
            return
        first, unit.phase = unit.phase is None, phase
        if first:
            self._plan(unit, now)

    def _plan(self, unit: _Unit, after: float) -> None:
        """The next window of a unit."""
        assert unit.phase is not None
        least = unit.clock(after) + self.hop_s / 4
        unit.next_end = unit.phase + ceil((least - unit.phase) / self.hop_s) * self.hop_s
        self.later(unit.true(unit.next_end), lambda at: self._window(unit, at))

    def _window(self, unit: _Unit, now: float) -> None:
        """A window of a unit ends."""
        units, battery = self.scenario.units, self.scenario.battery
        self._change(unit, now)
        end_s = unit.next_end
        if not unit.alive:
            return
        self._plan(unit, now)
        if unit.rests:
            if unit.asks:
                self._probe(unit, now)
            return
        number, flat = round(now / self.hop_s), now < unit.flat_until
        if not self._spend(unit, now, 1e-3 * (battery.wake_mj + (0.0 if flat else battery.window_mj))):
            return
        self.counts["wake-ups"] += 1
        self.counts["bytes"] += NO_DATA_BYTES if flat else self.window_bytes[unit.number]
        if unit.asks:
            self._ask(unit, now)
        if unit.lossy:
            self.counts["lost"] += 1
            return
        payload = None if flat else (number, unit.number)
        if not flat:
            self._sensed.setdefault(number, set()).add(unit.number)
        at = now + units.compute_s + self._delay()
        self.later(at, lambda at: self._arrive(unit, end_s, payload, at))

    def _change(self, unit: _Unit, now: float) -> None:
        """The link and the sensor of a unit before its next window."""
        units = self.scenario.units
        leave = 1 / units.burst
        enter = leave * units.loss / (1 - units.loss)
        unit.lossy = self.random.random() < (1 - leave if unit.lossy else enter)
        if (
            units.flat_every_h
            and now >= unit.flat_until
            and self.random.random() < self.hop_s / (3600 * units.flat_every_h)
        ):
            unit.flat_until = now + float(self.random.exponential(units.flat_s))

    def _arrive(self, unit: _Unit, end_s: float, payload: tuple[int, int] | None, now: float) -> None:
        if unit.alive:
            verdict = self.alignment.offer(unit.name, end_s, payload, now, "" if payload else "flat")
            self.counts[verdict] += 1
            self._answer(now)

    def _tick(self, now: float) -> None:
        """Time passes without a window."""
        self._answer(now)
        due = self.alignment.next_due(now)
        if due is not None:
            self.later(max(due, now + 1e-3), self._tick)

    def _answer(self, now: float) -> None:
        for point in self.alignment.due(now):
            self._take(point, now)

    def _take(self, point: Point[tuple[int, int]], now: float) -> None:
        """One answer, compared with what really happened."""
        mask = mask_of(unit for _, unit in point.windows.values())
        self.counts["answers"] += 1
        self.counts["misaligned"] += sum(number != point.number for number, _ in point.windows.values())
        sensed = self._sensed.pop(point.number, set())
        self.counts["missing"] += bool(sensed) and not mask
        self.counts["not sensed"] += not set(members(mask)) <= sensed
        self.masks[mask] += 1
        if mask:
            self.delays.append(now - point.end_s)
            self.right[mask] += bool(self._correct(mask)[self.random.integers(self.bundle.table.samples)])
        if self.bundle.table.accuracy[mask] >= self._wanted:
            self.below = None
        elif self.below is None:
            self.below = point.end_s
        if self.duty is None:
            return
        charge = {unit.number: self._percent(unit) for unit in self.units if unit.alive}
        working = self.duty.update(now, charge, members(mask))
        for unit in self.units:
            rests = unit.alive and unit.number not in working
            if unit.alive and rests != unit.rests:
                unit.rests = rests
                self.alignment.rest(unit.name, rests, now)

    def _percent(self, unit: _Unit) -> int | None:
        joules = self.scenario.battery.joules
        return round(100 * unit.energy / joules) if joules else None

    def _correct(self, mask: int) -> NDArray[np.bool_]:
        """Which test samples a set of units gets right."""
        if mask not in self._labels:
            features, labels = self.bundle.features
            logits = self.bundle.head.logits({i: features[i] for i in members(mask)})
            self._labels[mask] = logits.argmax(axis=1) == labels
        return self._labels[mask]


def simulate_sensing(scenario: SensingScenario, bundle: Bundle) -> dict[str, Any]:
    """Runs a scenario with all units, and with the duty cycle if there is a goal.

    Raises:
        ConfigError: the bundle has no sensing, the goal is out of reach, or charges do not fit the units.
        BundleError: the bundle has no recorded features.
    """
    goals = [0.0, *([scenario.sensing.accuracy_goal] if scenario.sensing.accuracy_goal else [])]
    rows = [_row(scenario, bundle, goal) for goal in goals]
    return {"schema": 1, "bundle": bundle.hash, "scenario": scenario.sensing.name, "rows": rows}


def _row(scenario: SensingScenario, bundle: Bundle, goal: float) -> dict[str, Any]:
    """One run as plain values."""
    world = _World(scenario, bundle, goal)
    world.run()
    counts, masks = world.counts, {mask: n for mask, n in world.masks.items() if mask}
    answered = sum(masks.values())
    hours = [(at - START) / 3600 for at in world.empty]
    wanted = scenario.sensing.accuracy_goal
    unit_hours = sum(unit.at - START for unit in world.units) / 3600
    samples = bundle.table.samples
    accuracy = sum(world.right.values()) / max(1, answered)
    table = float(sum(bundle.table.accuracy[mask] * n for mask, n in masks.items()) / max(1, answered))
    return {
        "policy": f"accuracy goal {goal:g}" if goal else "all units work",
        "answers": counts["answers"],
        "answers_missing": counts["missing"],
        "windows_misaligned": counts["misaligned"],
        "masks_with_a_unit_that_did_not_sense": counts["not sensed"],
        "windows_lost": counts["lost"],
        "accuracy": accuracy,
        "accuracy_interval": share_interval(accuracy, min(answered, samples)) if answered else None,
        "table": table,
        "table_interval": share_interval(min(1.0, table), samples) if answered else None,
        "goal_reached": sum(n for mask, n in masks.items() if bundle.table.accuracy[mask] >= wanted) / max(1, answered),
        "units_mean": sum(mask.bit_count() * n for mask, n in masks.items()) / max(1, answered),
        "delay_p95_s": float(np.quantile(world.delays, 0.95)) if world.delays else None,
        "bytes_per_answer": counts["bytes"] / max(1, counts["answers"]),
        "wake_ups_per_unit_hour": counts["wake-ups"] / unit_hours,
        "first_empty_h": hours[0] if hours else None,
        "all_empty_h": hours[-1] if len(hours) == len(world.units) else None,
        "below_goal_h": None if world.below is None else (world.below - START) / 3600,
    }
