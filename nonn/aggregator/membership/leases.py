"""Leases: which nodes are in the cluster, with which student, and until when. No clock, network or threads.

A node is in the cluster while it has a lease. Each id is one device:

- a request with another key comes from another device of the same name: it is refused while the lease lasts;
- a request with the same key and another process start comes from the same device after a restart: it gets its old
  lease. If the process that lost the lease comes back, there are two devices with one identity, as after the copy of a
  memory card: it is refused with that reason.

An address, too, belongs to one node while its lease lasts: a request never ends the lease of another node. One network
address may hold some leases only, since without TLS all nodes may share one token.

A new node gets the student that the fewest nodes run; of equals, the one whose part has the fewest nodes; of equals,
the one on which most accuracy depends. A node that already has a student of our bundle keeps it, so that the restart
of an aggregator moves nothing and two aggregators agree about the nodes that they share.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from nonn.aggregator.inventory import Node
from nonn.bundle import Bundle
from nonn.errors import MembershipError, UnreachableError
from nonn.rpc.address import canonical

__all__ = ["DEFAULT_LEASE_S", "MAX_OF_CALLER", "JoinRequest", "Lease", "Membership"]

# Three heartbeats: two may be lost. The breaker leaves out a node that dies in between long before.
DEFAULT_LEASE_S = 4.5
MAX_SUPERSEDED = 16  # bounds memory if a node restarts again and again
MAX_NODES = 1024  # concurrent leases; bounds memory
MAX_OF_CALLER = 64  # concurrent leases of one caller; bounds what the owner of one token can do to others


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """Request of a node to join.

    Attributes:
        node: its id.
        instance: random for each start of its process.
        fingerprint: fingerprint of its key.
        address: ``host:port``; empty while it does not serve yet.
        bundle: hash of the bundle of its student; empty if it has none.
        student: the student that it has or wants; None for any.
        version: its version of nonn.
        runtime: the runtime of its student.
        machine: processor architecture, for example ``aarch64``.
        max_model_bytes: largest student that it can store; 0 for any.
        dials_out: it has no address and serves over a stream that it opens.
        caller: owner of its certificate, or the network address that it comes from; for the quota of leases.
    """

    node: str
    instance: str
    fingerprint: str
    address: str = ""
    bundle: str = ""
    student: int | None = None
    version: str = ""
    runtime: str = ""
    machine: str = ""
    max_model_bytes: int = 0
    dials_out: bool = False
    caller: str = ""


@dataclass
class Lease:
    """The right of one node to be in the cluster.

    Attributes:
        token: secret of the node.
        request: its last request to join.
        student: the student that it runs.
        expires_at: end of the lease, on the clock of the calls.
        rss_bytes: memory of its process, from its last heartbeat; 0 before the first.
    """

    token: str
    request: JoinRequest
    student: int
    expires_at: float
    rss_bytes: int = 0


class Membership:
    """The leases of a cluster.

    Args:
        bundle: the bundle whose students are assigned.
        inventory: nodes that need no lease.
        lease_s: how long a lease lasts without a heartbeat.
    """

    def __init__(self, bundle: Bundle, inventory: Iterable[Node] = (), lease_s: float = DEFAULT_LEASE_S) -> None:
        self.lease_s = lease_s
        self._bundle, self._inventory = bundle, tuple(inventory)
        self._fixed = {canonical(node.address): node.id for node in self._inventory}
        self._leases: dict[str, Lease] = {}  # by node
        self._tokens: dict[str, str] = {}  # token → node
        self._superseded: dict[str, deque[str]] = {}  # node → the latest instances that lost its lease
        self._reserved: dict[str, int] = {}  # node → student
        self._value = bundle.accuracies.importance(np.array(bundle.p_fail))

    @property
    def leases(self) -> Mapping[str, Lease]:
        """By node."""
        return self._leases

    def choose(self, request: JoinRequest, now: float) -> int:
        """The student that a node would get; changes nothing, once expired leases have been ended.

        Raises:
            MembershipError: the id is taken, no student fits, or a limit of leases is reached.
            UnreachableError: the address is that of another node; it is free when that node's lease ends.
        """
        self._check(request, now)
        return self._student_for(request)

    def register(self, request: JoinRequest, now: float) -> Lease:
        """Gives a node a lease, or renews and changes the one that it has; raises as ``choose`` does."""
        old, student = self._check(request, now), self._student_for(request)
        if old is not None:
            if old.request.instance != request.instance:
                lost = self._superseded.setdefault(request.node, deque(maxlen=MAX_SUPERSEDED))
                lost.append(old.request.instance)
            del self._tokens[old.token]
        lease = Lease(secrets.token_urlsafe(16), request, student, now + self.lease_s)
        self._leases[request.node], self._tokens[lease.token] = lease, request.node
        return lease

    def reserve(self, node: str, student: int) -> None:
        """Reserves a student for a node: it gets this one if it has none, rather than the one that is needed most."""
        self._reserved[node] = student

    def renew(self, token: str, now: float, rss_bytes: int = 0) -> bool:
        """Extends a lease; false if there is none: the node must register again."""
        lease = self.find(token)
        if lease is None or lease.expires_at <= now:
            return False
        lease.expires_at, lease.rss_bytes = now + self.lease_s, rss_bytes
        return True

    def find(self, token: str) -> Lease | None:
        """The lease with this token, None if there is none."""
        return self._leases.get(self._tokens.get(token, ""))

    def end(self, token: str) -> Lease | None:
        """Ends a lease; returns it, or None if there was none."""
        lease = self.find(token)
        if lease is not None:
            del self._leases[lease.request.node], self._tokens[token]
            self._superseded.pop(lease.request.node, None)
        return lease

    def expire(self, now: float) -> list[Lease]:
        """Ends the leases that were not renewed, and returns them."""
        ended = [lease for lease in self._leases.values() if lease.expires_at <= now]
        for lease in ended:
            self.end(lease.token)
        return ended

    def next_expiry_s(self, now: float) -> float | None:
        """Seconds until the next lease ends; None without leases."""
        first = min((lease.expires_at for lease in self._leases.values()), default=inf)
        return None if first == inf else max(0.0, first - now)

    def _check(self, request: JoinRequest, now: float) -> Lease | None:
        """The lease that the node already has, if any.

        Raises:
            MembershipError, UnreachableError: see ``choose``.
        """
        name = f"node '{request.node}'"
        if any(request.node == node.id for node in self._inventory):
            raise MembershipError(f"{name}: the inventory has a node with that id; join with another --id")
        if request.address in self._fixed:
            raise MembershipError(f"{name}: {request.address} is the address of a node in the inventory")
        for lease in self._leases.values() if request.address else ():
            other = lease.request
            if other.address == request.address and other.node != request.node and lease.expires_at > now:
                raise UnreachableError(
                    f"{name}: {other.address} is the address of node '{other.node}', which has a lease; if that node "
                    "has ended, the address is free when its lease ends, otherwise give another --port or --advertise"
                )
        old = self._leases.get(request.node)
        if old is not None and old.expires_at <= now:
            self.end(old.token)
            old = None
        if old is None:
            if len(self._leases) >= MAX_NODES:
                raise MembershipError(f"{name}: the cluster is full, {MAX_NODES} nodes have joined")
            mine = sum(lease.request.caller == request.caller for lease in self._leases.values())
            if request.caller and mine >= MAX_OF_CALLER:
                raise MembershipError(
                    f"{name}: {request.caller} has {mine} nodes in the cluster, the limit of one caller without TLS; "
                    "use certificates: --tls"
                )
            return None
        if request.instance in self._superseded.get(request.node, ()):
            raise MembershipError(
                f"{name}: two devices share this identity, and the other one, {_where(old)}, has the lease; "
                "was a memory card copied? Give each device a separate id and key"
            )
        if old.request.instance != request.instance and old.request.fingerprint != request.fingerprint:
            raise MembershipError(
                f"{name}: the id belongs to a device with another key, {_where(old)}; join with another id, or, if "
                f"this device replaces that one, stop that one or wait {old.expires_at - now:.0f} s"
            )
        return old

    def _student_for(self, request: JoinRequest) -> int:
        """The student that the node brings, that is reserved for it, or that the cluster needs most."""
        if request.student is not None and self.runs_ours(request):
            if request.student >= self._bundle.num_devices:
                raise MembershipError(
                    f"node '{request.node}' wants student {request.student}; the bundle has 0 to "
                    f"{self._bundle.num_devices - 1}"
                )
            return request.student
        reserved = self._reserved.get(request.node)
        return self._assign(request) if reserved is None else reserved

    def runs_ours(self, request: JoinRequest) -> bool:
        """Whether the student of a node may be of our bundle; a node of another bundle has to get a new one first."""
        return request.bundle in ("", self._bundle.hash)

    def _assign(self, request: JoinRequest) -> int:
        """The student that the cluster needs most and that fits the node."""
        students = self._bundle.manifest.students
        running = [lease.student for node, lease in self._leases.items() if node != request.node]
        running += [node.student for node in self._inventory]
        limit = request.max_model_bytes or inf
        fitting = [student for student in students if student.bytes <= limit]
        if not fitting:
            smallest = min(student.bytes for student in students)
            raise MembershipError(
                f"node '{request.node}' can hold {request.max_model_bytes} bytes; the smallest student has {smallest}"
            )
        parts = [students[i].part for i in running]
        best = min(
            fitting,
            key=lambda s: (running.count(s.device), parts.count(s.part), -self._value[s.device], s.device),
        )
        return best.device


def _where(lease: Lease) -> str:
    if lease.request.dials_out:
        return "which dials out"
    return f"at {lease.request.address}" if lease.request.address else "which is fetching its student"
