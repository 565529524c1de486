"""The trace of a run: the outcome of every request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn_sim.faults import FaultEvent

__all__ = ["Trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """The outcome of every request, in the order in which they ended.

    Attributes:
        asked_at_s: time of arrival [R].
        latency_s: time until the answer, or until it was certain that there is none [R].
        mask: the fused subset [R].
        waited: whether a node was silent until the deadline [R].
        answered: whether the quorum was met [R].
        ended_s: length of the run.
        asked: requests sent to each device [cells, n].
        good: requests with a good reply in time [cells, n].
        served: exchanges on which each device spent energy [cells, n].
        on_s: time that each device was on [cells, n].
        events: all faults of the devices.
        refused: requests that found no aggregator up.
        retried: attempts of clients after the first of a request; the others' times are of whole requests.
    """

    asked_at_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    mask: NDArray[np.int32]
    waited: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    ended_s: float
    asked: NDArray[np.int64]
    good: NDArray[np.int64]
    served: NDArray[np.int64]
    on_s: NDArray[np.float64]
    events: tuple[FaultEvent, ...]
    refused: int = 0
    retried: int = 0
