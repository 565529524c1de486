"""Offset and drift of a node's clock against ours, from exchanges of timestamps over its open stream.

One exchange has four times: we ask at t1, the node receives at t2 and replies at t3 (both on its clock), the reply
arrives at t4. As in NTP (RFC 5905, section 8), offset ``((t2 − t1) + (t3 − t4)) / 2`` and delay ``(t4 − t1) − (t3 −
t2)``. Whatever the two directions took, the error of the offset is at most half of the delay. Hence:

- *Filter.* Of the exchanges of one block of time, only the one with the least delay is used.
- *Drift.* A weighted line through the blocks, once they span long enough; at most 500 ppm is believed.
- *Step.* If the interval of a new exchange and that of the prediction do not meet, the clock has been set, or the
  device was suspended. The filter starts again from the new exchange.
- *Trust.* A clock that steps three times within a minute is not trusted until a minute has passed without one.

Pure: times are arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ClockEstimate", "ClockFilter", "Exchange"]

BLOCK_S = 4.0
BLOCKS = 32
SPAN_S = 12.0  # blocks must span this much for a drift
MAX_DRIFT = 500e-6  # of any quartz; also the bound before a drift is known
FLOOR_S = 1e-3  # of the excess of a delay over the least
WANDER = 50e-6  # change of the drift that is allowed for
MAX_STEPS, STEPS_S = 3, 60.0


class Exchange(NamedTuple):
    """Four times of one exchange, in seconds: ours, the node's twice, ours."""

    asked: float
    received: float
    replied: float
    arrived: float

    @property
    def at(self) -> float:
        """Its time on our clock."""
        return (self.asked + self.arrived) / 2

    @property
    def offset(self) -> float:
        """The node's clock less ours."""
        return ((self.received - self.asked) + (self.replied - self.arrived)) / 2

    @property
    def delay(self) -> float:
        """Time on the way, both directions together."""
        return max(0.0, (self.arrived - self.asked) - (self.replied - self.received))


@dataclass(frozen=True, slots=True)
class ClockEstimate:
    """What is known about a node's clock.

    Attributes:
        at: time of the estimate on our clock.
        offset: the node's clock less ours at that time, in seconds.
        drift: how much faster the node's clock is; 1e-4 is 100 ppm.
        error: bound on the error of the offset at that time, in seconds.
        wander: growth of that bound, in seconds per second.
    """

    at: float
    offset: float
    drift: float
    error: float
    wander: float

    def offset_at(self, now: float) -> float:
        """Offset at a time of our clock."""
        return self.offset + self.drift * (now - self.at)

    def error_at(self, now: float) -> float:
        """Bound on the error of that offset."""
        return self.error + self.wander * abs(now - self.at)


class ClockFilter:
    """The clock of one node.

    Attributes:
        estimate: the current estimate; None before the first exchange.
        steps: how often the clock was set, or the device suspended, in total.
    """

    def __init__(self) -> None:
        self.estimate: ClockEstimate | None = None
        self.steps = 0
        self._blocks: deque[Exchange] = deque(maxlen=BLOCKS)
        self._stepped: deque[float] = deque(maxlen=MAX_STEPS)

    def add(self, exchange: Exchange) -> bool:
        """Adds an exchange; returns whether the clock has stepped since the last one."""
        now, stepped = exchange.at, False
        if self.estimate is not None:
            error = self.estimate.error_at(now) + exchange.delay / 2
            stepped = abs(exchange.offset - self.estimate.offset_at(now)) > error
            if stepped:
                self.steps += 1
                self._stepped.append(now)
                self._blocks.clear()
        if not self._blocks or now >= self._blocks[-1].at // BLOCK_S * BLOCK_S + BLOCK_S:
            self._blocks.append(exchange)
        elif exchange.delay <= self._blocks[-1].delay:
            self._blocks[-1] = exchange
        self.estimate = self._estimated(now)
        return stepped

    def trusted(self, now: float) -> bool:
        """Whether its times may be used."""
        recent = sum(now - at <= STEPS_S for at in self._stepped)
        return self.estimate is not None and recent < MAX_STEPS

    def to_ours(self, theirs: float) -> float:
        """A time of the node's clock on ours; infinite before the first exchange."""
        if self.estimate is None:
            return inf
        e = self.estimate
        return e.at + (theirs - e.at - e.offset) / (1 + e.drift)

    def to_theirs(self, ours: float) -> float:
        """A time of our clock on the node's."""
        return ours + (self.estimate.offset_at(ours) if self.estimate else 0.0)

    def _estimated(self, now: float) -> ClockEstimate:
        blocks = self._blocks
        # The least error now: an exchange gets worse with its age.
        best = min(blocks, key=lambda x: x.delay / 2 + MAX_DRIFT * (now - x.at))
        plain = ClockEstimate(best.at, best.offset, 0.0, best.delay / 2 + 1e-6, MAX_DRIFT)
        if blocks[-1].at - blocks[0].at < SPAN_S or len(blocks) < 3:
            return plain
        at, offset, delay = (np.array([getattr(x, name) for x in blocks]) for name in ("at", "offset", "delay"))
        # What an exchange takes longer than the fastest is what its offset may be wrong by.
        middle, drift, residual = _line(at, offset, (delay - delay.min() + FLOOR_S) ** -2.0)
        if abs(drift) > MAX_DRIFT:
            return plain
        fast = delay <= np.median(delay)
        error = best.delay / 2 + float(np.abs(residual[fast]).max()) + 1e-6
        return ClockEstimate(now, middle(now), drift, error, WANDER)


def _line(x: Any, y: Any, weight: Any) -> tuple[Callable[[float], float], float, Any]:
    """Weighted line through points: the line, its slope, and the residuals."""
    share = weight / weight.sum()
    centre, middle = float(share @ (x - x[0])) + float(x[0]), float(share @ (y - y[0])) + float(y[0])
    dx, dy = x - centre, y - middle
    slope = float((share * dx) @ dy / ((share * dx) @ dx))
    return lambda at: middle + slope * (at - centre), slope, dy - slope * dx
