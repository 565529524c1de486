"""The clock of this machine, in seconds of the data.

It starts at Unix time and then follows the boot clock: it does not jump when the wall clock is set, and it does count
the time in which the machine was suspended. A recording that is replayed at ten times real time has a clock that
runs ten times as fast, here and at the aggregator, so that windows, hop and tolerance keep their meaning.

An offset and a drift can be added, for experiments with wrong clocks.
"""

from __future__ import annotations

import time

__all__ = ["DataClock"]

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # Linux; others do not count a suspend
READINGS = 10


class DataClock:
    """Seconds of the data.

    Args:
        speed: how much faster than life the data are replayed.
        offset_s: error of the clock, for experiments.
        drift_ppm: error of its rate, for experiments.
    """

    def __init__(self, speed: float = 1.0, offset_s: float = 0.0, drift_ppm: float = 0.0) -> None:
        self.speed = speed
        self._zero = _unix_of_boot()
        self._start, self._offset_s, self._drift = self.true(), offset_s, drift_ppm * 1e-6

    def true(self) -> float:
        """Now without the error: Unix time times the speed."""
        return self.of_boot(time.clock_gettime(_BOOT))

    def of_boot(self, boot_s: float) -> float:
        """The same at a time of the boot clock, which drivers of Linux use."""
        return (boot_s + self._zero) * self.speed

    def __call__(self) -> float:
        """Now."""
        return self.at(self.true())

    def at(self, true_s: float) -> float:
        """What the clock shows at a time without error."""
        return true_s + self._offset_s + self._drift * (true_s - self._start)


def _unix_of_boot() -> float:
    """Unix time at which the boot clock was zero, in seconds.

    Of several readings the shortest counts: a process that is interrupted between two clocks is wrong by that time.
    """

    def reading() -> tuple[float, float]:
        before, unix, after = time.clock_gettime(_BOOT), time.time(), time.clock_gettime(_BOOT)
        return after - before, unix - (before + after) / 2

    return min(reading() for _ in range(READINGS))[1]
