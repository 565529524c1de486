"""The circuit breaker of one node: up, suspect or out, and when to probe it.

A node is

- *up* while its last reply was good, or before the first reply;
- *suspect* after a fast failure, such as a refused connection or a bad reply: requests still ask it;
- *out* after ``limit`` of those in a row, or after one silence (no reply in time): requests no longer ask it.

Suspect and out nodes are probed apart from requests; after one good reply the node is up again. The first probe is
sent at once, so that a node whose link has lost a single message is back within a round trip; later probes are
``reset_s`` apart. A node that fails again before it has answered a request waits ``reset_s`` for its next probe. This
is a circuit breaker (Nygard 2007, Release It!) whose half-open state costs no request.

A request that was sent before the node came back says nothing about the node now, so its failure is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

__all__ = ["Breaker"]


@dataclass(slots=True)
class Breaker:
    """State of one node. Every method returns whether ``state`` has changed.

    Attributes:
        limit: failures in a row after which the node is out.
        reset_s: time between probes.
        failures: failures in a row so far; 0 is up.
        probe_at: when to probe next; infinity while the node is up.
        probing: whether a probe is under way.
        up_since: when the node last came back.
        proven: whether it has answered a request since then.
    """

    limit: int
    reset_s: float
    failures: int = 0
    probe_at: float = inf
    probing: bool = False
    up_since: float = -inf
    proven: bool = False

    @property
    def state(self) -> str:
        """``up``, ``suspect`` or ``out``."""
        return "up" if self.failures == 0 else "suspect" if self.failures < self.limit else "out"

    def on_success(self, now: float) -> bool:
        """A request was answered."""
        self.proven = True
        return self._close(now) if self.failures else False

    def on_failure(self, asked_at: float, now: float, *, silent: bool) -> bool:
        """A request that was sent at ``asked_at`` failed; silence leaves the node out at once."""
        if asked_at < self.up_since:
            return False
        self.probe_at = min(self.probe_at, now if self.proven else now + self.reset_s)
        self.proven = False
        return self._count(max(self.failures + 1, self.limit) if silent else self.failures + 1)

    def on_probe(self, ok: bool, asked_at: float, now: float) -> bool:
        """A probe that was sent at ``asked_at`` has ended. Its silence counts once: it may have had no connection."""
        self.probing = False
        if ok and self.failures:
            self.proven = False
            return self._close(now)
        if ok:
            return False
        stale = asked_at < self.up_since
        if self.failures or not stale:
            self.probe_at = now + self.reset_s
        return False if stale else self._count(self.failures + 1)

    def due(self, now: float) -> bool:
        """Whether to send a probe now."""
        return self.probe_at <= now and not self.probing

    def _close(self, now: float) -> bool:
        self.up_since, self.failures, self.probe_at = now, 0, inf
        return True

    def _count(self, failures: int) -> bool:
        before, self.failures = self.state, failures
        return self.state != before
