"""Pictures of a camera → one picture for each instant of a grid, or the reason why there is none.

A picture is one reading, so there is no window to fill: the picture nearest to an instant is used, if it is at most
``tolerance_s`` away from it. It keeps its own time, by which the aggregator aligns it. "No data" is sent if

- ``silent``: no picture has come;
- ``gap``: pictures come, but none near the instant;
- ``old``: the only pictures that came show an earlier instant, as those of a connection that lags;
- ``frozen``: the pictures have been equal in every pixel for two hops, as those of a driver that repeats its buffer;
- ``flat``: in every channel the contrast (standard deviation over the pixels) is at most a tenth of that of the
  training picture with the least: no light, a covered lens, or far too much light.

Limits: a scene without any change and a camera without any noise look frozen; a camera that was turned or moved is
found by the other devices only (``nonn.fusion.consistency``). Pure: no clock, no threads.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.sensing.cutter import Cutter, Window
from nonn.sensing.spec import SensingSpec

__all__ = ["PictureCutter"]

FROZEN_HOPS = 2
CONTRAST = 0.1  # of the least in training


class PictureCutter(Cutter):
    """Picks pictures.

    Args:
        spec: of the unit; its ``frame`` is the size of the pictures.
    """

    def __init__(self, spec: SensingSpec) -> None:
        self._half_s = 0.5 / spec.rate_hz
        super().__init__(spec.hop_s, self._half_s)
        self._tolerance_s = spec.tolerance_s
        self._least = CONTRAST * np.array(spec.quiet or (0.0,) * len(spec.channels))
        self._pictures: deque[tuple[float, NDArray[Any]]] = deque(maxlen=2)
        self._equal_since = inf
        self._old = False  # a picture came whose instant had passed

    def add(self, times: NDArray[np.float64], values: NDArray[Any]) -> list[Window]:
        """Adds pictures [n, C, H, W] and returns the windows that they complete, each with one picture."""
        windows = []
        for time_s, picture in zip(times.tolist(), values, strict=True):
            last_s, last = self._pictures[-1] if self._pictures else (-inf, None)
            if time_s == last_s:  # the same reading again
                continue
            if time_s < last_s:  # the clock was set: nothing before can be compared with what follows
                self._pictures.clear()
                self._next, last = inf, None
            self._begin(time_s)
            if last is None or not np.array_equal(picture, last):
                self._equal_since = time_s
            self._old |= self._next < inf and time_s < self._next - self._hop_s - self._half_s
            self._pictures.append((time_s, picture))
            # The first picture from half an interval before the instant is the nearest one, of a camera at its rate.
            while time_s >= self._next - self._half_s:
                windows.append(self._cut())
        return windows

    def _cut(self) -> Window:
        end_s, old = self._take(), self._old
        self._old = False
        near_s, picture = min(self._pictures, key=lambda at: abs(at[0] - end_s), default=(-inf, None))
        if picture is None or abs(near_s - end_s) > self._tolerance_s:
            newest_s = self._pictures[-1][0] if self._pictures else -inf
            return Window(end_s, None, "gap" if newest_s > end_s else "old" if old else "silent")
        if (picture.reshape(len(picture), -1).std(axis=1) <= self._least).all():
            return Window(end_s, None, "flat")
        if near_s - self._equal_since >= FROZEN_HOPS * self._hop_s:
            return Window(end_s, None, "frozen")
        return Window(near_s, picture)
