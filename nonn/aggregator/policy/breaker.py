"""The circuit breaker of one node: unknown, up, suspect or out, and when to probe it.

A node is

- *unknown* before its first reply: requests ask it, but nothing is known of it;
- *up* while its last reply was good;
- *suspect* after a fast failure, such as a refused connection or a bad reply: requests still ask it;
- *out* after ``limit`` of those in a row, or after one silence (no reply in time): requests no longer ask it.

Suspect and out nodes are probed apart from requests; after one good reply the node is up again. The first probe is
sent at once, so that a node whose link has lost a single message is back within a round trip; later probes are
``reset_s`` apart. This is a circuit breaker (Nygard 2007, Release It!) whose half-open state costs no request.

A node that answers probes, but fails again before it has answered a request, costs requests their wait each time. It
is probed after ``reset_s``; each such relapse doubles that, up to a minute. Only an answered request ends the back-off.

A node that contradicts the other devices repeatedly (``nonn.reliability.suspicion``) is put into *quarantine*: it is
out, requests do not ask it even below the quorum, and only a probe with known inputs ends that. The first such probe
comes after ``quarantine_s``; the time doubles with each failed test and each new quarantine, up to an hour. It starts
again once the node has been up for ten times as long without another quarantine.

A request that was sent before the node came back says nothing about the node now, so its failure is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

__all__ = ["Breaker"]

MAX_QUARANTINE_S = 3600.0
MAX_BACK_OFF_S = 60.0
FORGIVEN_AFTER = 10  # last quarantines without another one


@dataclass(slots=True)
class Breaker:
    """State of one node. Every method returns whether ``state`` has changed.

    Attributes:
        limit: failures in a row after which the node is out.
        reset_s: time between probes.
        heard: whether it has ever answered; true for a node that is taken to be up from the start.
        quarantine_s: time until the first probe of a quarantine.
        failures: failures in a row so far.
        probe_at: when to probe next; infinity while the node is up.
        probing: whether a probe is under way.
        up_since: when the node last came back.
        proven: whether it has answered a request since then.
        relapses: how often in a row it failed without having answered a request since it came back.
        quarantined: whether only a probe with known inputs brings it back.
        quarantines: quarantines and failed tests in a row.
    """

    limit: int
    reset_s: float
    heard: bool = True
    failures: int = 0
    probe_at: float = inf
    probing: bool = False
    up_since: float = -inf
    proven: bool = False
    relapses: int = 0
    quarantine_s: float = 10.0
    quarantined: bool = False
    quarantines: int = 0

    @property
    def state(self) -> str:
        """``unknown``, ``up``, ``suspect`` or ``out``."""
        if self.failures == 0:
            return "up" if self.heard else "unknown"
        return "suspect" if self.failures < self.limit else "out"

    def on_success(self, now: float) -> bool:
        """A request was answered."""
        if self.quarantined:
            return False
        self.proven, self.relapses = True, 0
        return self._close(now) if self.failures or not self.heard else False

    def on_failure(self, asked_at: float, now: float, *, silent: bool) -> bool:
        """A request that was sent at ``asked_at`` failed; silence leaves the node out at once."""
        if asked_at < self.up_since or self.quarantined:
            return False
        if not self.failures:
            self.relapses = 0 if self.proven else self.relapses + 1
        back_off_s = _doubled(self.reset_s, self.relapses, max(MAX_BACK_OFF_S, self.reset_s))
        self.probe_at = min(self.probe_at, now if self.proven else now + back_off_s)
        self.proven = False
        return self._count(max(self.failures + 1, self.limit) if silent else self.failures + 1)

    def on_fault(self, now: float, *, out: bool) -> bool:
        """The node has failed in something other than one request.

        Args:
            now: time.
            out: whether the node is out at once, at least for ``reset_s``: what it answered before proves nothing.
        """
        self.proven = self.proven and not out
        return self.on_failure(now, now, silent=out)

    def on_probe(self, ok: bool, asked_at: float, now: float) -> bool:
        """A probe that was sent at ``asked_at`` has ended. Its silence counts once: it may have had no connection."""
        self.probing = False
        if self.quarantined:
            return self._tested(ok, now)
        if ok and (self.failures or not self.heard):
            self.proven = False
            return self._close(now)
        if ok:
            return False
        stale = asked_at < self.up_since
        if self.failures or not stale:
            self.probe_at = now + self.reset_s
        return False if stale else self._count(self.failures + 1)

    def quarantine(self, now: float) -> bool:
        """The node contradicts the others: out until a probe with known inputs."""
        if self.quarantined:
            return False
        if now - self.up_since > FORGIVEN_AFTER * self._quarantine_s():
            self.quarantines = 0
        self.quarantined, self.proven = True, False
        self._extend(now)
        return self._count(max(self.failures + 1, self.limit))

    def _tested(self, ok: bool, now: float) -> bool:
        """A probe with known inputs has ended."""
        if not ok:
            self._extend(now)
            return False
        self.quarantined = False
        return self._close(now)

    def _extend(self, now: float) -> None:
        """Sets the next test, twice as late as the last one."""
        self.quarantines += 1
        self.probe_at = now + self._quarantine_s()

    def _quarantine_s(self) -> float:
        return _doubled(self.quarantine_s, self.quarantines, MAX_QUARANTINE_S)

    def due(self, now: float) -> bool:
        """Whether to send a probe now."""
        return self.probe_at <= now and not self.probing

    def _close(self, now: float) -> bool:
        self.heard = True
        if self.failures:
            self.up_since, self.failures, self.probe_at = now, 0, inf
        return True

    def _count(self, failures: int) -> bool:
        before, self.failures = self.state, failures
        return self.state != before


def _doubled(first_s: float, times: int, longest_s: float) -> float:
    """The first time ``first_s``, then twice as long each time, at most ``longest_s``."""
    return min(first_s * 2.0 ** min(max(times - 1, 0), 64), longest_s)
