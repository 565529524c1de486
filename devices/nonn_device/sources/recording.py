"""``csv:FILE``: replays a recording in real time or faster.

The header names the channels and optionally a time; without a time the rows have the rate of the bundle. The first
sample is played at once, or at ``start``, so that several nodes replay recordings of one event together. Rows are read
as they are played: a recording of a day takes no more memory than one of a minute.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from nonn.errors import DataError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn.sensing.columns import rows
from nonn.sensing.windows import SLOW, middle
from nonn_device.sources import Samples, SampleSource, SourceOptions

__all__ = ["open_source"]

STEP_S = 0.1  # of the data: samples of this time are played together, as a sensor's FIFO would
CHECKED = 250  # first intervals from which the rate is measured


def open_source(options: SourceOptions, spec: SensingSpec, clock: DataClock) -> SampleSource:
    """Checks a recording and prepares its replay.

    Raises:
        DataError: see ``rows``; or its rate is lower than that of the bundle.
        ConfigError: a unit does not fit.
    """
    path = Path(options.where).expanduser()
    times = np.array([t for t, *_ in itertools.islice(rows(path, spec), CHECKED)])
    if len(times) < 2:
        raise DataError(f"{path}: {len(times)} samples; a recording has two or more")
    rate = 1 / middle(np.diff(times))
    if rate < SLOW * spec.rate_hz:
        raise DataError(
            f"{path}: {rate:.3g} samples per second; the bundle was trained at {spec.rate_hz:g}, and a slower "
            "recording cannot be resampled to it: record faster, or train a bundle with this sensing.rate_hz"
        )
    start_s = options.start_s(clock)

    async def play() -> AsyncIterator[Samples]:
        stamps, values = list[float](), list[list[float]]()
        for time_s, row, _ in rows(path, spec):
            if stamps and time_s - stamps[0] >= STEP_S:
                yield await _due(stamps, values)
                stamps, values = [], []
            stamps.append(time_s)
            values.append(row)
        yield await _due(stamps, values)

    async def _due(stamps: list[float], values: list[list[float]]) -> Samples:
        """Samples, at the time of the last of them."""
        wait_s = (start_s + stamps[-1] - clock.true()) / clock.speed
        await asyncio.sleep(max(0.0, wait_s))
        return Samples(np.array([clock.at(start_s + stamp) for stamp in stamps]), np.array(values))

    return play
