"""Samples of a sensor → windows of the bundle's rate on a grid, or the reason why a window has no data.

Instant j of the window that ends at e is ``e − (T − 1 − j) / rate``. Values there are interpolated linearly; a source
that is faster than one and a half times the rate is first averaged over one interval of the rate, which removes most
of what would alias. A window is answered with "no data" instead of values if

- ``silent``: no sample came until its end;
- ``gap``: two neighbouring samples are more than ``GAP`` intervals apart, or its start is missing;
- ``rate``: the source is slower than 80 % of the rate;
- ``invalid``: a value is NaN or infinite;
- ``flat``: a channel moves less than a tenth of what it did in the quietest training window, or all channels, at least
  three, stand still for half of the window, as when a sensor hangs within it;
- ``saturated``: a tenth of its samples or more, at least three, equal its extreme, near the end of the training range;
- ``range``: a tenth of its samples lie outside the training range, widened by its width at each end;
- ``clock``: time went backwards inside it.

Limits: a sensor that is wrong inside its usual range (rotated, swapped with another) is found by the other devices only
(``nonn.fusion.consistency``). Pure: no clock, no threads.
"""

from __future__ import annotations

from collections import deque
from math import inf

import numpy as np
from numpy.typing import NDArray

from nonn.sensing.cutter import Cutter, Window
from nonn.sensing.spec import SensingSpec

__all__ = ["Windower", "middle"]

Float64 = NDArray[np.float64]

GAP = 3.5  # intervals of the rate: three samples in a row may be lost
SLOW = 0.8  # of the rate
FAST = 1.5  # times the rate: averaged
SHARE = 0.1  # of the samples of a window: saturated, out of range
NEAR_END = 0.9  # of the training range
QUIET = 0.1  # of the quietest training window
STILL = 1e-9  # of the training range: rounding of averages
MOVING = 3  # channels that do not all stand still at once, however coarse they are


def middle(values: Float64) -> float:
    """The median, of two the larger. That of NumPy loads its masked arrays, 1.6 MB that a node does not need."""
    return float(np.partition(values, len(values) // 2)[len(values) // 2])


class Windower(Cutter):
    """Cuts samples into windows.

    Args:
        spec: of the unit; its channels are the columns of the samples.
    """

    def __init__(self, spec: SensingSpec) -> None:
        super().__init__(spec.hop_s)
        self._spec, self._interval = spec, 1 / spec.rate_hz
        self._scale = np.array(spec.scale)
        self._times: deque[float] = deque()
        self._values: deque[Float64] = deque()
        self._backwards = -inf  # when time last went backwards

    def add(self, times: Float64, values: Float64) -> list[Window]:
        """Adds samples [n, C] and returns the windows that they complete."""
        windows = []
        for time_s, row in zip(times.tolist(), values, strict=True):
            if self._times and time_s <= self._times[-1]:
                self._restart(time_s)
            self._begin(time_s)
            step_s = min(self._interval, time_s - self._times[-1]) if self._times else self._interval
            self._times.append(time_s)
            self._values.append(row)
            # Half an interval early: otherwise every window would wait for one more sample.
            while time_s >= self._next - step_s / 2:
                windows.append(self._cut())
        if self._phase is None:  # the grid is not known yet
            self._forget(times[-1] - self._spec.window_s - GAP * self._interval)
        return windows

    def _restart(self, time_s: float) -> None:
        """Time went backwards: nothing before can be compared with what follows."""
        self._times.clear()
        self._values.clear()
        self._backwards, self._next = time_s, inf

    def _cut(self) -> Window:
        """The next window; forgets samples that no later window needs."""
        end_s, window_s = self._take(), self._spec.window_s
        keep = self._next - window_s - GAP * self._interval
        times, rows = np.array(self._times), self._values
        start_s = end_s - window_s + self._interval
        values, reason = self._examined(times, rows, start_s, end_s)
        self._forget(keep)
        return Window(end_s, values, reason)

    def _forget(self, before_s: float) -> None:
        """Forgets samples before a time, but for the last of them."""
        while len(self._times) > 1 and self._times[1] < before_s:
            self._times.popleft()
            self._values.popleft()

    def _examined(
        self, times: Float64, rows: deque[Float64], start_s: float, end_s: float
    ) -> tuple[NDArray[np.float32] | None, str]:
        """Values [C, T] of a window, or the reason why there are none."""
        interval, half = self._interval, self._interval / 2
        inside = (times > start_s - half) & (times < end_s + half)
        if not inside.any():
            return None, "clock" if start_s <= self._backwards <= end_s else "silent"
        if self._backwards > start_s:
            return None, "clock"
        first, last = int(inside.argmax()), len(inside) - 1 - int(inside[::-1].argmax())
        # One sample on either side, unless it is on the other side of a gap.
        most = GAP * interval
        before = first > 0 and times[first] - times[first - 1] <= most
        after = last + 1 < len(times) and times[last + 1] - times[last] <= most
        around = slice(first - before, last + 1 + after)
        near, values = times[around], np.array([rows[i] for i in range(around.start, around.stop)])
        steps: Float64 = np.diff(near)
        late, early = end_s - near[-1], near[0] - start_s
        usual = middle(steps) if len(near) > 1 else inf
        if len(near) < 2 or max(steps.max(), late, early) > most:
            few = len(near) > 2 and usual > interval / SLOW
            return None, "rate" if few and max(late, early) < 2 * usual else "gap"
        if usual > interval / SLOW:
            return None, "rate"
        if not np.isfinite(values).all():
            return None, "invalid"
        instants = np.asarray(end_s - np.arange(self._spec.samples - 1, -1, -1) * interval, np.float64)
        resample = _averaged if usual < interval / FAST else _interpolated
        resampled = resample(instants, near, values.astype(np.float64), interval) * self._scale[:, None]
        return (None, reason) if (reason := self._implausible(resampled)) else (resampled.astype(np.float32), "")

    def _implausible(self, values: Float64) -> str:
        """Why a working sensor would not have measured a window [C, T]; empty if it would."""
        spec, limit = self._spec, max(3, SHARE * values.shape[1])
        if not spec.low:
            return "flat" if (np.ptp(values, axis=1) == 0).all() else ""
        low, high, quiet = (np.array(v)[:, None] for v in (spec.low, spec.high, spec.quiet))
        width = high - low
        if (np.ptp(values, axis=1, keepdims=True) < QUIET * quiet).any():
            return "flat"
        halves = np.stack([values[:, : values.shape[1] // 2], values[:, -(values.shape[1] // 2) :]])
        still = (np.ptp(halves, axis=2) <= STILL * width.T).all(axis=1)
        if len(values) >= MOVING and (quiet > 0).all() and still.any():
            return "flat"
        if (((values > high + width) | (values < low - width)).sum(axis=1) >= limit).any():
            return "range"
        middle, reach = (low + high) / 2, NEAR_END * width / 2
        for extreme, beyond in ((values.max(axis=1, keepdims=True), 1), (values.min(axis=1, keepdims=True), -1)):
            clipped = (values == extreme).sum(axis=1, keepdims=True) >= limit
            # At rest a coarse sensor repeats one value; only the end of the range is a limit of the sensor.
            if (clipped & (beyond * (extreme - middle) >= reach) & (np.ptp(values, axis=1, keepdims=True) > 0)).any():
                return "saturated"
        return ""


def _interpolated(instants: Float64, times: Float64, values: Float64, interval: float) -> Float64:
    """Linear interpolation [n, C] → [C, T]."""
    return np.stack([np.interp(instants, times, column) for column in values.T])


def _averaged(instants: Float64, times: Float64, values: Float64, interval: float) -> Float64:
    """Mean of the interpolated signal over one interval around each instant, [n, C] → [C, T]."""
    areas = np.diff(times)[:, None] * (values[1:] + values[:-1]) / 2
    integral = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(areas, axis=0)])
    edges = np.clip([instants - interval / 2, instants + interval / 2], times[0], times[-1])
    # The first and last instant may lie half an interval outside of the samples: a quarter of an interval is left.
    edges[0] = np.minimum(edges[0], times[-1] - interval / 4)
    edges[1] = np.maximum(edges[1], times[0] + interval / 4)
    upper, lower = (np.stack([np.interp(edge, times, column) for column in integral.T]) for edge in edges[::-1])
    width = edges[1] - edges[0]
    result: Float64 = (upper - lower) / width
    return result
