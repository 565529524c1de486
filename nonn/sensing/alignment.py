"""Alignment: windows of several nodes on one grid, and when the answer of each grid point is due.

A grid point is a multiple of the hop on our clock. A node's window belongs to the point next to its end, converted
with the node's clock filter (``nonn.sensing.clocks``), if it is at most ``tolerance_s`` away. A point is answered

- as soon as every node that is waited for has sent its window or reported that it has none, and there is a window, or
- ``wait_s`` after its end, with what has arrived.

A node is not waited for while it rests, is silent (three points without a word), or its clock is unknown or not
trusted. A window that comes after its point was answered updates statistics only. A point without any window is
answered too, without any device.

Pure: time is an argument, and the simulator uses the same object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Generic, Literal, TypeVar

from nonn.errors import ConfigError, MembershipError
from nonn.sensing.clocks import ClockFilter, Exchange

__all__ = ["Alignment", "AlignmentConfig", "Point", "SensingNode", "WindowVerdict"]

Payload = TypeVar("Payload")
WindowVerdict = Literal["taken", "late", "off grid", "early", "twice", "clock"]

RESTS = "rests: the others reach the accuracy goal"
SILENT_POINTS = 3  # without a word: no longer waited for
MAX_BEHIND = 8  # points that are answered after this process has stood still; older ones are skipped


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Times of the grid, in seconds.

    Attributes:
        hop_s: time between two points.
        tolerance_s: largest distance of a window's end from its point; None is a tenth of the hop.
        wait_s: longest wait after a point; None is half of the hop.

    Raises:
        ConfigError: a time is not positive, or the tolerance more than half of the hop.
    """

    hop_s: float
    tolerance_s: float | None = None
    wait_s: float | None = None

    def __post_init__(self) -> None:
        if not self.hop_s > 0 or not 0 < self.tolerance <= self.hop_s / 2:
            raise ConfigError(
                f"tolerance of {self.tolerance:g} s: must be above 0 and at most half of the hop, {self.hop_s / 2:g} s"
            )
        if not 0 < self.wait < 10 * self.hop_s:
            raise ConfigError(f"wait of {self.wait:g} s: must be above 0 and below ten hops, {10 * self.hop_s:g} s")

    @property
    def tolerance(self) -> float:
        """The tolerance that applies."""
        return self.hop_s / 10 if self.tolerance_s is None else self.tolerance_s

    @property
    def wait(self) -> float:
        """The wait that applies."""
        return self.hop_s / 2 if self.wait_s is None else self.wait_s


@dataclass
class SensingNode:
    """One node that senses.

    Attributes:
        unit: the student that it runs.
        clock: its clock.
        counts: its windows by verdict, and points without data by reason.
        heard: last point for which it sent anything.
        late_s: mean lateness of its late windows, in seconds.
        rests: the aggregator asked it to send nothing; it is not waited for.
    """

    unit: int
    heard: int
    clock: ClockFilter = field(default_factory=ClockFilter)
    counts: Counter[str] = field(default_factory=Counter)
    late_s: float = 0.0
    rests: bool = False


@dataclass(frozen=True)
class Point(Generic[Payload]):
    """One grid point that is due.

    Attributes:
        number: of the point; its time is ``number · hop_s``.
        end_s: that time.
        windows: payload of each node that sent a window.
        absent: why the other nodes have none, by node.
    """

    number: int
    end_s: float
    windows: Mapping[str, Payload]
    absent: Mapping[str, str]


class Alignment(Generic[Payload]):
    """The grid of one cluster.

    Args:
        config: times.

    Attributes:
        nodes: record of each node, by id.
    """

    def __init__(self, config: AlignmentConfig) -> None:
        self.config, self.nodes = config, dict[str, SensingNode]()
        self._windows: dict[int, dict[str, Payload]] = {}
        self._absent: dict[int, dict[str, str]] = {}
        self._answered = -1  # last point that was answered

    def join(self, node: str, unit: int, now: float) -> SensingNode:
        """A node begins to send windows, or begins again after its stream broke.

        Raises:
            MembershipError: another node senses this unit.
        """
        for other, record in self.nodes.items():
            if record.unit == unit and other != node:
                raise MembershipError(
                    f"node '{node}': unit {unit} is sensed by node '{other}' already; one node measures each unit: "
                    "stop that one, or join as another unit with --student"
                )
        current = floor(now / self.config.hop_s)
        if not self.nodes:
            self._answered = max(self._answered, current)
        old = self.nodes.get(node)
        record = SensingNode(unit, current)
        if old is not None:  # its process may be another one, with another clock
            record.counts, record.late_s, record.clock.steps = old.counts, old.late_s, old.clock.steps
        self.nodes[node] = record
        return record

    def leave(self, node: str) -> None:
        """A node's stream has ended; windows that it has sent stay."""
        self.nodes.pop(node, None)

    def rest(self, node: str, rests: bool, now: float) -> None:
        """Stops the windows of a node, or lets it send them again."""
        record = self.nodes[node]
        record.rests = rests
        record.heard = max(record.heard, floor(now / self.config.hop_s))

    def exchange(self, node: str, times: Exchange) -> bool:
        """Adds an exchange of timestamps; returns whether the node's clock has stepped."""
        return node in self.nodes and self.nodes[node].clock.add(times)

    def phase(self, node: str, now: float) -> float | None:
        """A grid point on the node's clock; None while that is unknown."""
        clock = self.nodes[node].clock
        return clock.to_theirs(self._next_point(now)) if clock.estimate else None

    def offer(self, node: str, end_s: float, payload: Payload | None, now: float, reason: str = "") -> WindowVerdict:
        """A node sends a window, or says that it has no data for it.

        Args:
            node: its id.
            end_s: end of the window on the node's clock.
            payload: of the window; None without data.
            now: time of its arrival on our clock.
            reason: why there are no data.

        Returns:
            ``taken``; or why it is not used: its point is answered already (``late``), it is too far from the grid, it
            ends in the future, a window is there already, or the node's clock is not usable (``clock``).
        """
        record, hop_s = self.nodes[node], self.config.hop_s
        verdict, point = self._judged(record, end_s, now)
        if verdict in ("taken", "late"):
            record.heard = max(record.heard, point)
        if verdict == "late":
            late_s = now - point * hop_s - self.config.wait
            record.late_s += (max(0.0, late_s) - record.late_s) / (record.counts["late"] + 1)
        if verdict == "taken" and node in self._windows.get(point, {}) | self._absent.get(point, {}):
            verdict = "twice"
        record.counts[verdict] += 1
        if verdict == "taken":
            if payload is None:
                record.counts[reason] += 1
                self._absent.setdefault(point, {})[node] = f"no data: {reason}"
            else:
                self._windows.setdefault(point, {})[node] = payload
        return verdict

    def due(self, now: float) -> list[Point[Payload]]:
        """The points to answer now, in order; none while no node senses and nothing has arrived."""
        points, last = [], floor(now / self.config.hop_s)
        self._answered = max(self._answered, last - MAX_BEHIND)
        while (number := self._answered + 1) <= last and self._complete(number, now):
            self._answered = number
            windows, absent = self._windows.pop(number, {}), self._absent.pop(number, {})
            for node, record in self.nodes.items():
                if node not in windows and node not in absent:
                    absent[node] = self._why(record, number, now)
                    record.counts["resting" if record.rests else "missing"] += 1
            if windows or absent:
                points.append(Point(number, number * self.config.hop_s, windows, absent))
        for kept in (self._windows, self._absent):
            for number in [n for n in kept if n <= self._answered]:
                del kept[number]
        return points

    def next_due(self, now: float) -> float | None:
        """When ``due`` may have something next, unless a window comes before; None while no node senses."""
        if not self.nodes and not self._windows and not self._absent:
            return None
        end_s = (self._answered + 1) * self.config.hop_s
        return end_s if now < end_s else end_s + self.config.wait

    def _judged(self, record: SensingNode, end_s: float, now: float) -> tuple[WindowVerdict, int]:
        """The verdict on a window, and its point."""
        clock, hop_s = record.clock, self.config.hop_s
        if clock.estimate is None or not clock.trusted(now):
            return "clock", 0
        error = clock.estimate.error_at(now)
        if error > self.config.tolerance:
            return "clock", 0
        ours = clock.to_ours(end_s)
        point = round(ours / hop_s)
        if abs(ours - point * hop_s) > self.config.tolerance + error:
            return "off grid", point
        if ours > now + self.config.tolerance + error:
            return "early", point
        return ("late" if point <= self._answered else "taken"), point

    def _complete(self, number: int, now: float) -> bool:
        """Whether nothing more is waited for."""
        if now >= number * self.config.hop_s + self.config.wait:
            return True
        there = self._windows.get(number, {}).keys() | self._absent.get(number, {}).keys()
        # With "no data" alone a node that was silent is waited for too: it may be the only one that senses again.
        some = number in self._windows
        return bool(there) and all(
            node in there
            or record.rests
            or (some and (number - record.heard > SILENT_POINTS or not self._usable(record, now)))
            for node, record in self.nodes.items()
        )

    def _usable(self, record: SensingNode, now: float) -> bool:
        clock = record.clock
        return (
            clock.trusted(now) and clock.estimate is not None and clock.estimate.error_at(now) <= self.config.tolerance
        )

    def _why(self, record: SensingNode, number: int, now: float) -> str:
        """Why a node has no window for a point."""
        if record.rests:
            return RESTS
        clock = record.clock
        if clock.estimate is None:
            return "its clock is not known yet"
        if not clock.trusted(now):
            return "its clock has stepped several times in a minute and is not trusted"
        error = clock.estimate.error_at(now)
        if error > self.config.tolerance:
            return f"its clock is known to {error:.3f} s only, the tolerance is {self.config.tolerance:g} s"
        silent = number - record.heard
        return f"silent for {silent} windows" if silent > SILENT_POINTS else "its window has not arrived in time"

    def _next_point(self, now: float) -> float:
        return ceil(now / self.config.hop_s) * self.config.hop_s
