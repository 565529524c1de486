"""One call to the first of several aggregators that answers it.

Every call of the protocol may be repeated, because it changes nothing. So a call moves to the next aggregator when one

- cannot be reached, ends the connection, shuts down, or answers with a damaged message;
- is below its quorum or overloaded, which may be true only there;
- shows a certificate that is not accepted;
- is silent for longer than usual (``nonn.client.order``).

An answer is final, and so is the refusal of a request (wrong shape, unknown model). If every aggregator refuses the
connection, the call goes around again for a second, because gRPC connects again to a restarted server only after half a
second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from nonn.client.link import Link
from nonn.client.order import Order
from nonn.errors import CredentialsError, DataLossError, NonnError, OverloadError, QuorumError, UnreachableError
from nonn.rpc.wire import CLIENT_STREAMS

__all__ = ["Failover"]

ELSEWHERE = (UnreachableError, QuorumError, OverloadError, DataLossError, CredentialsError)
AROUND_S, PAUSE_S = 1.0, 0.05

T = TypeVar("T")


class Failover:
    """Calls to several aggregators that serve the same nodes; thread-safe.

    Args:
        links: the aggregators.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links, self._order = links, Order(len(links), CLIENT_STREAMS)

    @property
    def first(self) -> Link:
        """The aggregator that is asked first."""
        return self._links[self._order.first]

    def call(self, method: str, request: Any, timeout_s: float, read: Callable[[Any, str], T]) -> T:
        """Makes one call.

        Args:
            method: as of ``Link.call``.
            request: its request.
            timeout_s: until the reply, at most.
            read: turns a reply, from the aggregator at an address, into the result; raises a ``NonnError`` if it
                is bad.

        Raises:
            NonnError: every aggregator failed, or one refused the request.
        """
        started = time.monotonic()
        until, around_until = started + timeout_s, started + min(AROUND_S, timeout_s)
        while True:
            try:
                return self._once(method, request, until, read)
            except _NoAnswerError as exc:
                again = exc.refused and time.monotonic() + PAUSE_S < around_until
                if not again:
                    raise exc.error() from None
                time.sleep(PAUSE_S)

    def _once(self, method: str, request: Any, until: float, read: Callable[[Any, str], T]) -> T:
        """Asks each aggregator at most once.

        Raises:
            _NoAnswerError: none of them answered.
            NonnError: one of them refused the request.
        """
        replies: SimpleQueue[tuple[int, Any, NonnError | None]] = SimpleQueue()
        waiting, failures = self._order.links(), dict[int, NonnError]()
        cancels, asked_at = dict[int, Callable[[], object]](), dict[int, float]()

        def ask() -> float:
            """Asks the next aggregator; returns when to ask the one after it."""
            link, now = waiting.pop(0), time.monotonic()
            asked_at[link] = now
            cancels[link] = self._links[link].start(
                method, request, max(0.001, until - now), lambda reply, error: replies.put((link, reply, error))
            )
            return now + self._order.hedge_s

        hedge_at, deferred = ask(), False
        try:
            while cancels:
                now = time.monotonic()
                try:
                    link, reply, error = replies.get(timeout=max(0.0, min(until, hedge_at if waiting else until) - now))
                except Empty:
                    if time.monotonic() >= until:
                        break
                    if deferred or self._order.may_hedge():
                        hedge_at, deferred = ask(), False
                    else:
                        hedge_at, deferred = now + (until - now) / 2, True
                    continue
                del cancels[link]
                try:
                    if error is not None:
                        raise error
                    result = read(reply, self._links[link].address)
                except ELSEWHERE as exc:
                    failures[link] = exc
                    if waiting:
                        hedge_at, deferred = ask(), False
                    continue
                self._order.answered(link, time.monotonic() - asked_at[link])
                return result
        finally:
            for cancel in cancels.values():
                cancel()
        for link in cancels:
            failures[link] = UnreachableError(f"{self._links[link].address}: no answer in time")
        raise _NoAnswerError(failures, refused=not cancels)


class _NoAnswerError(Exception):
    """No aggregator answered.

    Attributes:
        failures: of each aggregator that was asked.
        refused: whether all refused the connection, rather than not answering in time.
    """

    def __init__(self, failures: dict[int, NonnError], *, refused: bool) -> None:
        super().__init__()
        self.failures = failures
        self.refused = refused and all(type(error) is UnreachableError for error in failures.values())

    def error(self) -> NonnError:
        """One error for the caller: of the most specific kind, with what each aggregator said."""
        errors = list(self.failures.values())
        kind = next((type(error) for error in errors if not isinstance(error, UnreachableError)), UnreachableError)
        return kind("; ".join(map(str, errors)))
