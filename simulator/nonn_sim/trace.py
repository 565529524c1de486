"""What happened to every request of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn_sim.faults import FaultEvent

__all__ = ["Trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """What happened to every request, in the order in which they ended.

    Attributes:
        asked_at_s: arrival [R].
        latency_s: until the answer, or until it was clear that there is none [R].
        mask: the set that was fused [R].
        waited: whether somebody was silent until the deadline [R].
        answered: whether the quorum was met [R].
        ended_s: length of the run.
        asked: requests that asked each device [cells, n].
        good: those that it answered well in time [cells, n].
        served: exchanges that it spent energy on [cells, n].
        on_s: how long each device was on [cells, n].
        events: everything that happened to devices.
    """

    asked_at_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    mask: NDArray[np.int64]
    waited: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    ended_s: float
    asked: NDArray[np.int64]
    good: NDArray[np.int64]
    served: NDArray[np.int64]
    on_s: NDArray[np.float64]
    events: tuple[FaultEvent, ...]
