"""One call to the first of several aggregators that answers it.

Every call of the protocol may be repeated, because it changes nothing. So a call moves to the next aggregator when one

- cannot be reached, ends the connection, shuts down, or answers with a damaged message;
- is below its quorum or overloaded, which may be true only there;
- shows a certificate that is not accepted;
- is silent, and does not answer a check either (``ServerLive``, which a live aggregator answers at once, however slow
  its devices are). How long it may take to answer the check says ``nonn.client.order``; without the allowance for that,
  the next aggregator is asked at half of the time left.

An answer is final, and so is the refusal of a request (wrong shape, unknown model). If every aggregator refuses the
connection, the call goes around again for a second, because gRPC connects again to a restarted server only after half a
second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from nonn.client.link import Link
from nonn.client.order import Order
from nonn.errors import CredentialsError, DataLossError, NonnError, OverloadError, QuorumError, UnreachableError
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import CLIENT_STREAMS

__all__ = ["Failover"]

ELSEWHERE = (UnreachableError, QuorumError, OverloadError, DataLossError, CredentialsError)
AROUND_S, PAUSE_S = 1.0, 0.05
QUIET_S, AGAIN_S = 0.015, 0.05  # silence before a check, and after one that was answered before the next

CHECK = "ServerLive"

T = TypeVar("T")
Cancel = Callable[[], object]


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
        replies: SimpleQueue[tuple[str, int, Any, NonnError | None]] = SimpleQueue()
        waiting, failures, cancels = self._order.links(), dict[int, NonnError](), dict[int, Cancel]()
        watch, checks = _Watch(self._order), list[Cancel]()

        def start(call: str, link: int, message: Any) -> Cancel:
            left = max(0.001, until - time.monotonic())
            return self._links[link].start(
                call, message, left, lambda reply, error: replies.put((call, link, reply, error))
            )

        def ask() -> None:
            """Asks the next aggregator."""
            link = waiting.pop(0)
            watch.asked(link, time.monotonic())
            cancels[link] = start(method, link, request)

        ask()
        try:
            while cancels:
                now = time.monotonic()
                look_at = min(until, watch.look_at) if waiting else until
                try:
                    call, link, reply, error = replies.get(timeout=max(0.0, look_at - now))
                except Empty:
                    now = time.monotonic()
                    if now >= until:
                        break
                    step = watch.silent(now, until)
                    if step == "check":
                        checks.append(start(CHECK, watch.link, pb.ServerLiveRequest()))
                    elif step == "hedge":
                        ask()
                    continue
                if call == CHECK:
                    watch.checked(link, time.monotonic(), alive=error is None)
                    continue
                del cancels[link]
                try:
                    if error is not None:
                        raise error
                    result = read(reply, self._links[link].address)
                except ELSEWHERE as exc:
                    failures[link] = exc
                    if waiting:
                        ask()
                    continue
                self._order.answered(link)
                return result
        finally:
            for cancel in (*cancels.values(), *checks):
                cancel()
        for link in cancels:
            failures[link] = UnreachableError(f"{self._links[link].address}: no answer in time")
        raise _NoAnswerError(failures, refused=not cancels)


class _Watch:
    """Watches the aggregator that was asked last, for one request.

    Attributes:
        link: its number.
        look_at: when to look again if nothing has come from it.
    """

    def __init__(self, order: Order) -> None:
        self._order, self._checked_at, self._deferred = order, 0.0, False
        self.link, self.look_at = 0, 0.0

    def asked(self, link: int, now: float) -> None:
        """An aggregator was asked."""
        self.link, self.look_at, self._checked_at, self._deferred = link, now + QUIET_S, 0.0, False

    def silent(self, now: float, until: float) -> Literal["check", "hedge", "wait"]:
        """Nothing has come until ``look_at``: whether to check the aggregator, to ask the next one, or to wait."""
        if not self._checked_at:
            self._checked_at, self.look_at = now, now + self._order.patience_s
            return "check"
        if self._deferred or self._order.may_hedge():
            return "hedge"
        self._deferred, self.look_at = True, now + (until - now) / 2
        return "wait"

    def checked(self, link: int, now: float, *, alive: bool) -> None:
        """A check has ended."""
        if link != self.link or not self._checked_at:
            return
        if alive:
            self._order.checked(now - self._checked_at)
            self._checked_at, self._deferred, self.look_at = 0.0, False, now + AGAIN_S
        else:
            self.look_at = now


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
        """One error for the caller: of the most specific kind, with the message of each aggregator."""
        errors = list(self.failures.values())
        kind = next((type(error) for error in errors if not isinstance(error, UnreachableError)), UnreachableError)
        return kind("; ".join(map(str, errors)))
