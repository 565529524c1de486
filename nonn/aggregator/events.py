"""Events of an aggregator, for its observers: metrics, traces, drift alarm, fault log.

An observer is called in the event loop after the answer is ready, so it must be cheap and must not block. Its
exceptions are logged and go no further: observing never fails a request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.reply import Reply

__all__ = ["LateEvent", "Observer", "Observers", "Outcome", "RequestEvent", "StateEvent"]

Outcome = Literal["ok", "degraded", "below_quorum", "invalid", "exhausted"]

_Event = TypeVar("_Event")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RequestEvent:
    """One request, or several in one batch, has been answered or refused.

    Attributes:
        time_s: end of the request, on the aggregator's clock.
        num_samples: B; 0 if the request could not be read.
        outcome: ``ok`` every device answered, ``degraded`` some did; ``below_quorum``, ``invalid`` (a bad request) and
            ``exhausted`` (the queue was full) are errors.
        mask: mask of the fused devices; 0 without an answer.
        expected_accuracy: accuracy of that subset, in [0, 1]; 0 without an answer.
        latency_s: time from request to answer.
        replies: replies of every node that was asked, hedges included.
        early: whether it was fused while a device might still have answered in time.
        hedges: number of replicas asked in place of a slow or failed node.
        features: device → fused features [B, d_i]; None without an answer.
        num_requests: number of requests in the batch.
    """

    time_s: float
    num_samples: int
    outcome: Outcome
    mask: int = 0
    expected_accuracy: float = 0.0
    latency_s: float = 0.0
    replies: tuple[Reply, ...] = ()
    early: bool = False
    hedges: int = 0
    features: Mapping[int, NDArray[np.float32]] | None = None
    num_requests: int = 1


@dataclass(frozen=True)
class StateEvent:
    """The state of a node has changed.

    Attributes:
        time_s: time on the aggregator's clock.
        node: id of the node.
        before: ``up``, ``suspect`` or ``out``; empty for a new node.
        after: the same; empty for a removed node.
        reason: reason in a few words; empty for a node that came back.
    """

    time_s: float
    node: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class LateEvent:
    """A reply came after its request had been answered; it updates statistics but never changes an answer.

    Attributes:
        time_s: time on the aggregator's clock.
        node: id of the node.
        latency_s: time from asking to the reply.
    """

    time_s: float
    node: str
    latency_s: float


class Observer(Protocol):
    """An observer of an aggregator."""

    def on_request(self, event: RequestEvent) -> None:
        """A request has been answered or refused."""

    def on_state(self, event: StateEvent) -> None:
        """The state of a node has changed."""

    def on_late(self, event: LateEvent) -> None:
        """A reply came too late."""


class Observers:
    """Several observers as one; an error in one of them is logged and does not reach the others."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def on_request(self, event: RequestEvent) -> None:
        """A request has been answered or refused."""
        for observer in self._observers:
            self._tell(observer.on_request, event)

    def on_state(self, event: StateEvent) -> None:
        """The state of a node has changed."""
        for observer in self._observers:
            self._tell(observer.on_state, event)

    def on_late(self, event: LateEvent) -> None:
        """A reply came too late."""
        for observer in self._observers:
            self._tell(observer.on_late, event)

    @staticmethod
    def _tell(hook: Callable[[_Event], None], event: _Event) -> None:
        """Calls one hook."""
        try:
            hook(event)
        except Exception:  # no error of an observer may fail a request
            _log.exception("an observer failed at %s; requests go on", type(event).__name__)
