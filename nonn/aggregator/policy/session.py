"""Decisions for one request: which nodes to ask, which to ask in addition, and when the answer is good enough.

A session receives every reply and failure, and decides after each of them, and at ``look_at`` at the latest, which
nodes to ask now and whether to go on waiting. No clock, no network: time is an argument.

**Hedging.** If several nodes run a student, one of them is asked: the one that is expected to answer first by its
median latency and its open requests. If it fails, or is silent for longer than 95 % of its answers take, the next one
is also asked, and the first good reply is used (Dean and Barroso 2013, "The tail at scale"). By construction this asks
one extra node in one request of twenty.

**Early fusion.** ``accuracy_per_ms`` above 0 is the accuracy that the operator considers a millisecond worth. The
devices that are still missing are ordered by their expected time. The value of waiting for the first k of them is

    Π p_i · (a(S ∪ {1 … k}) − a(S)) − accuracy_per_ms · w_k

with S the set that has answered, a its accuracy in the bundle's table, p_i the chance that device i answers before the
deadline given how long it has been silent, and w_k the median remaining time of the k-th; both come from its last
latencies. The sum over k grows device by device, since one of two missing replicas of a part may be worth nothing
alone. The session waits for the k of the highest value, until its time is over or the replies that have arrived make
the rest not worth it; then it decides again. If no k has a positive value, the answer is fused from S.

**Stragglers.** Without ``accuracy_per_ms``, the wait ends early in one case: most students have answered, the rest is
later by ``patience_s``, a tenth of the deadline, and a(S with the rest) − a(S) is at most ``early_loss``. A node that
is found late is a straggler until one of its replies comes with those of the others; meanwhile nothing waits for it at
all, if the loss allows, so that a straggler costs its patience once and not in every request. If the loss forbids it,
the session waits on, but the next batch need not wait for it (``prompt_done``).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from math import inf
from typing import Protocol

from nonn.aggregator.policy.config import PolicyConfig
from nonn.aggregator.policy.latencies import Latencies
from nonn.reliability.table import AccuracyOf

__all__ = ["Session", "SessionPolicy"]

# Timers of an event loop may fire this early.
EPSILON_S = 1e-6
# Least time between two decisions about the same silence; finer ones are not worth waking up for.
MIN_LOOK_S = 2e-4
_NONE: frozenset[str] = frozenset()


class SessionPolicy(Protocol):
    """The interface that a session needs; ``Policy`` implements it."""

    @property
    def config(self) -> PolicyConfig:
        """Options of the operator."""
        ...

    @property
    def accuracy(self) -> AccuracyOf:
        """Accuracy of each subset of students; early fusion needs it."""
        ...

    @property
    def bits(self) -> Mapping[str, int]:
        """Id → bit of its student in a mask; a node that has left is missing."""
        ...

    @property
    def replicated(self) -> bool:
        """Whether several nodes run the same student."""
        ...

    def latencies(self, node: str) -> Latencies:
        """The last latencies of a node."""
        ...

    @property
    def stragglers(self) -> AbstractSet[str]:
        """Nodes that are known to be later than the others."""
        ...

    def fell_behind(self, node: str) -> None:
        """A node is much later than the others."""
        ...

    def cheap(self, mask: int, missing: int) -> bool:
        """Whether an answer of ``mask`` loses at most ``early_loss`` without ``missing``."""
        ...

    def hedge_after_s(self, node: str) -> float:
        """How long a node may be silent before a replica is also asked."""
        ...

    def asked(self, node: str) -> bool:
        """A session asks one more node. Returns whether it may."""
        ...


class Session:
    """The decisions for one request; created by ``Policy.session``.

    Args:
        policy: records of all nodes.
        ask: nodes to ask first.
        spares: further replicas of a student, in the order in which they are asked.
        now: time of the request.
        deadline_s: when waiting ends in any case.
        below_quorum: the nodes that are not out are fewer than the quorum: every reply matters.

    Attributes:
        ask: nodes to ask first.
        asked_at: time of the request.
        deadline_at: when waiting ends in any case.
        waiting: nodes that have neither answered nor failed → when they were asked.
        answered: mask of the students that answered.
        done: whether the wait has ended.
        early: whether it ended while a node might still have answered in time.
        hedges: number of nodes asked in place of a slow or failed one.
        look_at: when to decide again if nothing arrives.
        eager: whether decisions may depend on the time of single replies; otherwise only on the last of them, as long
            as no reply is later than another one by ``patience_s``.
        prompt_done: whether only stragglers are missing.
        prompt_at: when the last of the other nodes had answered, if so.
    """

    __slots__ = (
        "_below_quorum",
        "_chance",
        "_heard",
        "_hung",
        "_majority",
        "_patient_until",
        "_policy",
        "_spares",
        "_until",
        "_wanted",
        "answered",
        "ask",
        "asked_at",
        "deadline_at",
        "done",
        "eager",
        "early",
        "hedges",
        "look_at",
        "prompt_at",
        "prompt_done",
        "waiting",
    )

    def __init__(
        self,
        policy: SessionPolicy,
        ask: tuple[str, ...],
        spares: Mapping[int, tuple[str, ...]],
        now: float,
        deadline_s: float,
        below_quorum: bool,
    ) -> None:
        self._policy, self._below_quorum, self.ask, self.asked_at = policy, below_quorum, ask, now
        self.deadline_at = self.look_at = now + deadline_s
        self.waiting = dict.fromkeys(ask, now)
        self._hung = _NONE
        self._spares = {student: list(nodes) for student, nodes in spares.items()} if spares else {}
        self.answered = self.hedges = 0
        self.done, self.early = not ask, False
        self._until, self._wanted, self._chance = -inf, 0, 0.0  # the last decision to wait
        self._majority, self._heard = len(ask) // 2 + (len(ask) > 2), False
        self._patient_until, self.prompt_at, self.prompt_done = inf, now, False
        # With replicas also because the next node to ask depends on the calls under way.
        self.eager = below_quorum or policy.replicated or policy.config.accuracy_per_ms > 0 or bool(policy.stragglers)
        if self.eager:
            self._look(now)

    def tell(self, node: str, ok: bool) -> bool:
        """Records a reply or a failure; call ``decide`` next.

        Returns:
            Whether to fuse the reply: it is good, in time, and the first of its student.
        """
        if self.waiting.pop(node, None) is None:
            return False
        self._heard = True
        bit = self._policy.bits.get(node, 0)
        fused = ok and bool(bit) and not self.answered & bit
        if fused:
            self.answered |= bit
        if not self.waiting and not self._spares:
            self.done = True
        elif self._hung:
            self._settle()
        return fused

    def exclude(self, student: int) -> None:
        """A student's features are not fused after all."""
        self.answered &= ~(1 << student)

    def leave_out(self, node: str) -> None:
        """Stops waiting for a node that another request has found to hang, unless the quorum needs it."""
        if not self._below_quorum and node in self.waiting:
            self._hung = self._hung | {node}
            self._settle()

    def _settle(self) -> None:
        """Ends the wait if only hung nodes are left and the quorum is reached without them."""
        if self.answered.bit_count() >= self._policy.config.quorum and not self._spares:
            self.done = self.done or self.waiting.keys() <= self._hung

    def timed_out(self, now: float) -> bool:
        """Whether the wait has ended at the deadline."""
        return now >= self.deadline_at - EPSILON_S

    def decide(self, now: float) -> tuple[str, ...]:
        """Decides what to do now.

        Returns:
            Nodes to ask in addition. ``done`` and ``look_at`` tell whether and until when to wait.
        """
        if self.done:
            return ()
        if self.timed_out(now):
            self.done = True
            return ()
        more, self.look_at = tuple[str, ...](), self.deadline_at
        if self.eager:
            more = self._hedge(now) if self._spares else ()
            # If every student has one node, the last reply has set ``done``.
            if (self._below_quorum or self._policy.replicated) and not self._missing():
                self.done = True
            else:
                self._look(now)
        if self._heard or more or now >= self._patient_until - EPSILON_S:
            self._mind_stragglers(now, bool(more))
        self.look_at = min(self.look_at, self._patient_until)
        return more

    def _missing(self) -> bool:
        """Whether a student that has not answered may still do so."""
        bits, answered = self._policy.bits, self.answered
        hung = self._hung if answered.bit_count() >= self._policy.config.quorum else _NONE
        return any(bits.get(node, 0) & ~answered and node not in hung for node in self.waiting)

    def _hedge(self, now: float) -> tuple[str, ...]:
        """Asks the next replica of every student whose last one failed or is slower than usual."""
        more = []
        for student, spares in tuple(self._spares.items()):
            while spares and not self.answered >> student & 1 and now >= self._hedge_at(student) - EPSILON_S:
                node = spares.pop(0)
                if self._policy.asked(node):
                    more.append(node)
                    self.waiting[node] = now
                    self.hedges += 1
                    break
            if not spares or self.answered >> student & 1:
                del self._spares[student]
        return tuple(more)

    def _hedge_at(self, student: int) -> float:
        """When the next replica of a student is due; in the past if no node is left to wait for."""
        bit, policy = 1 << student, self._policy
        waiting = [item for item in self.waiting.items() if item[0] not in self._hung]
        asked = [(at, node) for node, at in waiting if policy.bits.get(node, 0) == bit]
        if not asked:
            return -inf
        at, node = max(asked)
        return at + policy.hedge_after_s(node)

    def _look(self, now: float) -> None:
        """Sets the time of the next decision, or ends the wait because no missing reply is worth it."""
        config, self.look_at = self._policy.config, self.deadline_at
        if self._spares:
            self.look_at = min(self.look_at, *(self._hedge_at(student) for student in self._spares))
        if config.accuracy_per_ms and self.answered.bit_count() >= config.quorum:
            if not self._worth_waiting(now):
                self.done = self.early = True
            elif self._until < self.look_at:
                self.look_at = self._until

    def _mind_stragglers(self, now: float, asked_more: bool) -> None:
        """Finds out whether only stragglers are missing, and ends the wait if the answer loses little without them."""
        if self._heard or asked_more:
            if not self.prompt_done:
                self.prompt_at = now
            self._heard = False
        policy, config, answered = self._policy, self._policy.config, self.answered
        count = answered.bit_count()
        if self.done or self._below_quorum or self._spares or count < max(config.quorum, self._majority):
            return
        bits = policy.bits
        late = [node for node in self.waiting if bits.get(node, 0) & ~answered and node not in self._hung]
        if not all(node in policy.stragglers for node in late):
            patient_until = self.prompt_at + config.patience_s
            if now < patient_until - EPSILON_S:
                if not now < self._patient_until <= patient_until:  # an earlier look sets the timer less often
                    self._patient_until = patient_until
                return
            for node in late:
                policy.fell_behind(node)
        self._patient_until, self.prompt_done = inf, True
        missing = 0
        for node in late:
            missing |= bits[node]
        if not config.accuracy_per_ms and policy.cheap(answered, missing):
            self.done = self.early = True

    def _worth_waiting(self, now: float) -> bool:
        """Whether to keep waiting: for the devices of the last decision, or for those of a new one."""
        accuracy, price_s = self._policy.accuracy, 1000 * self._policy.config.accuracy_per_ms
        base = accuracy[self.answered]
        if now < self._until and self._chance * (accuracy[self.answered | self._wanted] - base) > price_s * (
            self._until - now
        ):
            return True
        mask, chance, best = self.answered, 1.0, 0.0
        for wait_s, p_answers, bit in sorted(self._expected(now)):
            mask, chance = mask | bit, chance * p_answers
            worth = chance * (accuracy[mask] - base) - price_s * wait_s
            if worth > best:
                best, self._wanted, self._chance = worth, mask, chance
                self._until = now + max(wait_s, MIN_LOOK_S)
        return best > 0

    def _expected(self, now: float) -> list[tuple[float, float, int]]:
        """For each missing student: expected remaining time, probability of an answer, and its bit."""
        policy, answered, best = self._policy, self.answered, dict[int, tuple[float, float, int]]()
        for node, asked_at in self.waiting.items():
            bit = policy.bits.get(node, 0)
            if bit & ~answered and node not in self._hung:
                chance, wait_s = policy.latencies(node).rest(now - asked_at, self.deadline_at - asked_at)
                if bit not in best or chance > best[bit][1]:
                    best[bit] = wait_s, chance, bit
        return list(best.values())
