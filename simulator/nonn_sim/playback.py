"""Made cameras for live runs: a node replays recorded pictures (``--source nonn_sim.playback:pictures?file=…``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock

__all__ = ["pictures", "write_pictures"]


def write_pictures(path: Path, times: NDArray[np.float64], shown: NDArray[np.uint8]) -> None:
    """Writes pictures [n, C, H, W] and their times from the start [n], in seconds of the data."""
    np.savez(path, times=times, pictures=shown)


async def pictures(spec: SensingSpec, clock: DataClock, file: str, start: float) -> AsyncIterator[Any]:
    """Pictures of a file at their times.

    Args:
        spec: of the unit.
        clock: of the node.
        file: of ``write_pictures``.
        start: Unix time at which its times begin.
    """
    with np.load(file) as arrays:
        times, shown = start * clock.speed + arrays["times"], arrays["pictures"]
    for at, picture in zip(times.tolist(), shown, strict=True):
        await asyncio.sleep(max(0.0, (at - clock.true()) / clock.speed))
        yield clock.at(at), picture
