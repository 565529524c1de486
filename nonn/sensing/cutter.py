"""Windows on a grid of times: what windows of samples and single pictures have in common.

``nonn.sensing.windows`` cuts samples, ``nonn.sensing.pictures`` picks pictures. Pure: no clock, no threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRACE_S", "NO_DATA", "Cutter", "Window"]

# In the order of their numbers in sensing.proto, from 1.
NO_DATA = ("silent", "gap", "rate", "invalid", "flat", "saturated", "range", "clock", "frozen", "old")

GRACE_S = 0.25  # by default


@dataclass(frozen=True, eq=False)
class Window:
    """One window.

    Attributes:
        end_s: time of its last sample, on the clock of the samples; of its picture for a camera.
        values: input of the student [C, T], or the picture [C, H, W]; None without data.
        reason: why there are no data, one of ``NO_DATA``; empty with data.
    """

    end_s: float
    values: NDArray[Any] | None
    reason: str = ""


class Cutter(ABC):
    """Returns one window for each end on the grid.

    Args:
        hop_s: time between two ends.
        patience_s: after an end, in which what belongs to it may still be measured.
    """

    def __init__(self, hop_s: float, patience_s: float = 0.0) -> None:
        self._hop_s, self._patience_s = hop_s, patience_s
        self._phase: float | None = None
        self._next = inf  # end of the next window

    def aim(self, phase_s: float) -> None:
        """Windows end at this time and every hop before and after it; a small change moves the next window only."""
        if self._phase is not None and self._next < inf:
            moved = (phase_s - self._next) / self._hop_s
            self._next += (moved - round(moved)) * self._hop_s
        self._phase = phase_s

    @abstractmethod
    def add(self, times: NDArray[np.float64], values: NDArray[Any]) -> list[Window]:
        """Adds what was measured and returns the windows that it completes.

        Args:
            times: on the clock of the sensor [n], in seconds.
            values: samples [n, C] in the units of the bundle, or pictures [n, C, H, W].
        """

    def expire(self, now_s: float, grace_s: float = GRACE_S) -> list[Window]:
        """The windows that have ended without samples, as "no data".

        Args:
            now_s: time on the clock of the samples.
            grace_s: after the end of a window, in which a sample may still arrive.
        """
        if self._phase is None:
            return []
        if self._next == inf:
            self._next = self._phase + ceil((now_s - self._phase) / self._hop_s) * self._hop_s
        windows = []
        while now_s > self._next + self._patience_s + grace_s:
            windows.append(self._cut())
        return windows

    def _begin(self, time_s: float) -> None:
        """The first end after a time is the next one, unless one is known already."""
        if self._next == inf and self._phase is not None:
            ahead = floor((time_s - self._phase) / self._hop_s) + 1
            self._next = self._phase + ahead * self._hop_s

    def _take(self) -> float:
        """The next end; the one after it is next from now on."""
        end_s = self._next
        self._next += self._hop_s
        return end_s

    @abstractmethod
    def _cut(self) -> Window:
        """The next window."""
