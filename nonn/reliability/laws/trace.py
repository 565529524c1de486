"""A recorded trace of real devices going up and down."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError
from nonn.reliability.laws.base import FirstPassage, FloatArray, IntArray, TimedLaw

__all__ = ["Trace", "read_trace"]

_COLUMNS = ["time_s", "device", "state"]
_STATES = {"up": True, "down": False}


def read_trace(path: Path, num_devices: int) -> tuple[FloatArray, IntArray]:
    """Reads a CSV file of ``time_s,device,state`` with states ``up`` and ``down``, in the order of time.

    Every device is up until its first row.

    Returns:
        Times of change from the first row to the last [T], and the subset of devices that is up from each of them on
        [T].

    Raises:
        ConfigError: the file cannot be read, or a row is invalid; the message names file and line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc
    reader = csv.DictReader(text.splitlines())
    if reader.fieldnames != _COLUMNS:
        raise ConfigError(f"{path}: the first line must be {','.join(_COLUMNS)}")
    times: list[float] = []
    masks: list[int] = []
    mask = (1 << num_devices) - 1
    for row in reader:
        where = f"{path}:{reader.line_num}"
        try:
            time_s, device = float(row["time_s"]), int(row["device"])
        except (TypeError, ValueError):
            raise ConfigError(f"{where}: '{row['time_s']},{row['device']}' is not a time and a device number") from None
        if not math.isfinite(time_s) or (times and time_s < times[-1]):
            raise ConfigError(f"{where}: time {row['time_s']} is not after the line before")
        if not 0 <= device < num_devices:
            raise ConfigError(f"{where}: unknown node {device}; there are nodes 0 to {num_devices - 1}")
        if row["state"] not in _STATES:
            raise ConfigError(f"{where}: state '{row['state']}'; write up or down")
        mask = mask | 1 << device if _STATES[row["state"]] else mask & ~(1 << device)
        if times and times[-1] == time_s:
            masks[-1] = mask
        else:
            times.append(time_s)
            masks.append(mask)
    if len(times) < 2:
        raise ConfigError(f"{path}: a record needs a first and a last moment; its last line ends it")
    return np.array(times), np.array(masks, dtype=np.int64)


class Trace(TimedLaw):
    """Shares of the recorded time.

    Args:
        times_s: times of change [T]; the last one ends the record.
        masks: subset that is up from each time on [T].
        num_devices: N.
    """

    kind = "trace"

    def __init__(self, times_s: FloatArray, masks: IntArray, num_devices: int, text: str = "") -> None:
        super().__init__(num_devices, text)
        self.times_s, self.masks = times_s, masks

    def probabilities(self) -> FloatArray:
        """Share of the time in which each subset was up."""
        lasted = np.diff(self.times_s)
        result: FloatArray = np.bincount(self.masks[:-1], lasted, 1 << self.num_devices) / lasted.sum()
        return result

    def sample(self, rng: np.random.Generator, count: int) -> IntArray:
        """Draws times in the record, for any N."""
        moments = rng.uniform(self.times_s[0], self.times_s[-1], count)
        return self.masks[np.searchsorted(self.times_s, moments, side="right") - 1]

    def probabilities_at(self, time_s: float) -> FloatArray:
        """The subset that was up at a time after the first row; outside of the record, the nearest one."""
        place = int(np.searchsorted(self.times_s - self.times_s[0], time_s, side="right")) - 1
        result = np.zeros(1 << self.num_devices)
        result[self.masks[max(place, 0)]] = 1
        return result

    def first_passage(self, good: NDArray[np.bool_]) -> FirstPassage:
        """The first passage in the record, after its first row; infinite if there is none."""
        bad = np.flatnonzero(~good[self.masks])
        fall = float(self.times_s[bad[0]] - self.times_s[0]) if len(bad) else float("inf")
        return FirstPassage.certain(fall, "record")
