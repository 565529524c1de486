"""The trace of a run: the outcome of every request, or sums over them if they are many."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn_sim.deployments import Deployment
from nonn_sim.faults import FaultEvent
from nonn_sim.scenario import RunConfig
from nonn_sim.totals import KEPT, WINDOWS, Totals

__all__ = ["Recorder", "RequestTrace", "right_answers"]


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """The outcome of every request, in the order in which they ended.

    Attributes:
        asked_at_s: time of arrival [R].
        latency_s: time until the answer, or until it was certain that there is none [R].
        which: number of the fused subset [R].
        sets: the subsets that occur, as masks, by number.
        waited: whether a node was silent until the deadline [R].
        answered: whether the quorum was met [R].
        totals: sums over the requests of a long run, R is then 0; None if every request is in the trace.
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
    totals: Totals | None
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


class Recorder:
    """Collects the outcomes of requests: each of them up to ``KEPT``, beyond them their totals.

    Args:
        deployment: the deployment that runs.
        run: length of the run, and its windows.
    """

    def __init__(self, deployment: Deployment, run: RunConfig) -> None:
        self._deployment, self._run = deployment, run
        self._totals: Totals | None = None
        self._clear()

    def _clear(self) -> None:
        self._asked_at, self._latency, self._which = array("d"), array("d"), array("i")
        self._sets: dict[int, int] = {}  # mask → number, since masks of many devices are long
        self._waited, self._answered = array("b"), array("b")

    def add(self, asked_at_s: float, latency_s: float, mask: int, *, waited: bool, answered: bool) -> None:
        """Records a request; see ``RequestTrace``."""
        self._asked_at.append(asked_at_s)
        self._latency.append(latency_s)
        self._which.append(self._sets.setdefault(mask, len(self._sets)))
        self._waited.append(waited)
        self._answered.append(answered)
        if len(self._latency) == KEPT:
            self._add_up()

    def trace(self, **others: Any) -> RequestTrace:
        """The trace; ``others`` are its fields that are not about requests."""
        if self._totals is not None and self._latency:
            self._add_up()
        return RequestTrace(**self._arrays(), sets=tuple(self._sets), totals=self._totals, **others)

    def _add_up(self) -> None:
        """Moves the recorded requests to the totals."""
        kept, run = self._arrays(), self._run
        if self._totals is None:
            length_s = run.duration_s or run.requests * float(kept["asked_at_s"].max()) / KEPT
            known = run.duration_s or run.window_s
            self._totals = Totals(run.window_s or length_s / WINDOWS, None if known else WINDOWS, run.levels)
        answered, whole = kept["answered"], self._sets.get(self._deployment.full, -1)
        self._totals.add(
            kept["asked_at_s"],
            kept["latency_s"],
            right_answers(self._deployment, tuple(self._sets), kept["which"], answered),
            answered,
            waited=int(kept["waited"].sum()),
            degraded=int((kept["which"][answered] != whole).sum()),
        )
        self._clear()

    def _arrays(self) -> dict[str, Any]:
        """The recorded requests: views, since a copy of a million of them is 22 MB."""
        return {
            "asked_at_s": np.frombuffer(self._asked_at),
            "latency_s": np.frombuffer(self._latency),
            "which": np.frombuffer(self._which, np.int32),
            "waited": np.frombuffer(self._waited, np.bool_),
            "answered": np.frombuffer(self._answered, np.bool_),
        }


def right_answers(
    deployment: Deployment, sets: Sequence[int], which: NDArray[np.int32], answered: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Probability that each request gets a right answer: the accuracy of its subset, 0 without an answer [R]."""
    of_set = np.array([deployment.accuracy[mask] for mask in sets])
    return np.where(answered, of_set[which], 0.0)
