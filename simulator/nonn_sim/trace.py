"""The trace of a run: the outcome of every request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        which: number of the fused subset [R].
        sets: the subsets that occur, as masks, by number.
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
    which: NDArray[np.int32]
    sets: tuple[int, ...]
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

    @property
    def mask(self) -> NDArray[Any]:
        """The fused subset of each request, as a mask [R]: int64, and Python's own integers from 63 devices on."""
        wide = any(mask >> 63 for mask in self.sets)
        masks: NDArray[Any] = np.array(self.sets or [0], dtype=object if wide else np.int64)[self.which]
        return masks
