"""A recorded trace of real devices going up and down."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError
from nonn.reliability.laws.base import BoolArray, FirstPassage, FloatArray, TimedLaw
from nonn.reliability.subsets import masks_of

__all__ = ["Trace", "read_trace"]

_COLUMNS = ["time_s", "device", "state"]
_STATES = {"up": True, "down": False}
_UNIX_S = 1e9  # a time above it is a date since 1970: as a time since a start it would be 32 years


def read_trace(path: Path, num_devices: int) -> tuple[FloatArray, BoolArray]:
    """Reads a CSV file of ``time_s,device,state`` with states ``up`` and ``down``, in the order of time.

    The record begins at 0, with every device up until its first row.

    Returns:
        Times of change from 0 to the last row [T], and the devices that are up from each of them on [T, N].

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
    times, now = [0.0], np.ones(num_devices, dtype=bool)
    states = [now]
    for row in reader:
        where = f"{path}:{reader.line_num}"
        try:
            time_s, device = float(row["time_s"]), int(row["device"])
        except (TypeError, ValueError):
            raise ConfigError(f"{where}: '{row['time_s']},{row['device']}' is not a time and a device number") from None
        if not math.isfinite(time_s) or time_s < times[-1]:
            before = "the line before" if len(times) > 1 else "the start of the record, 0"
            raise ConfigError(f"{where}: time {row['time_s']} is not after {before}")
        if len(times) == 1 and time_s >= _UNIX_S:
            raise ConfigError(
                f"{where}: time {row['time_s']} is a date; time_s counts from the start of the record: subtract it"
            )
        if not 0 <= device < num_devices:
            raise ConfigError(f"{where}: unknown node {device}; there are nodes 0 to {num_devices - 1}")
        if row["state"] not in _STATES:
            raise ConfigError(f"{where}: state '{row['state']}'; write up or down")
        now = now.copy()
        now[device] = _STATES[row["state"]]
        if times[-1] == time_s:
            states[-1] = now
        else:
            times.append(time_s)
            states.append(now)
    if len(times) < 2:
        raise ConfigError(f"{path}: a record needs a moment after 0; its last line ends it")
    return np.array(times), np.array(states)


class Trace(TimedLaw):
    """Shares of the recorded time.

    Args:
        times_s: times of change, the first of them 0 [T]; the last one ends the record.
        up: devices that are up from each time on [T, N].
    """

    kind = "trace"

    def __init__(self, times_s: FloatArray, up: BoolArray, text: str = "") -> None:
        super().__init__(up.shape[1], text)
        self.times_s, self.up = times_s, up

    def probability_of(self, up: BoolArray) -> FloatArray:
        """Share of the time in which each subset was up."""
        shares: dict[bytes, float] = {}
        for state, lasted_s in zip(self.up, np.diff(self.times_s).tolist(), strict=False):
            shares[state.tobytes()] = shares.get(state.tobytes(), 0.0) + lasted_s / self.times_s[-1]
        return np.array([shares.get(row.tobytes(), 0.0) for row in up])

    def draw(self, rng: np.random.Generator, count: int) -> BoolArray:
        """Draws times in the record."""
        drawn_s = rng.uniform(0, self.times_s[-1], count)
        return self.up[np.searchsorted(self.times_s, drawn_s, side="right") - 1]

    def first_passage(self, good: NDArray[np.bool_]) -> FirstPassage:
        """The first passage in the record; infinite if there is none."""
        bad = np.flatnonzero(~good[masks_of(self.up)])
        return FirstPassage.certain(float(self.times_s[bad[0]]) if len(bad) else float("inf"), "record")
