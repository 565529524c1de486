"""The Fleet service: nodes join a running cluster, fetch their student, and leave.

``Membership`` decides and this module carries it out: a lease with an address is a node of the aggregator until it
ends. A node is called at its address before it gets that lease (``newcomers``). Nothing is stored on disk. After a
restart the aggregator has no leases and rejects the first heartbeats, and each node registers again with the student
that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from nonn.aggregator.fanout import Connect, connect_insecure
from nonn.aggregator.inventory import Node
from nonn.aggregator.membership.dial_out import WorkChannels, dialled
from nonn.aggregator.membership.leases import MAX_OF_CALLER, JoinRequest, Lease, Membership
from nonn.aggregator.membership.newcomers import check_answers, join_request
from nonn.aggregator.service import Aggregator
from nonn.bundle import MANIFEST
from nonn.errors import ConfigError, CredentialsError, ForbiddenError, InputError, NonnError, OverloadError
from nonn.files import sha256_file
from nonn.rpc.guard import Guard
from nonn.rpc.registration import add_servicer
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.wire import to_status
from nonn.telemetry.background import Background

__all__ = ["MEMBERSHIP_SERVICE", "MembershipServicer"]

MEMBERSHIP_SERVICE = "nonn.rpc.v1.Fleet"
CHUNK_BYTES = 256 * 1024

_log = logging.getLogger(__name__)


class MembershipServicer:
    """Servicer of ``nonn.rpc.v1.Fleet``.

    Args:
        aggregator: the aggregator that nodes join.
        membership: decides about leases.
        guard: guard of the server, which gives the identity of a TLS caller.
        work: channels to nodes that dial out, used by the aggregator.
        connect: opens the channel on which a node is called before it is added; in plain text by default.
        clock: monotonic time in seconds; by default the aggregator's, on which no lease ends while it stands still.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        membership: Membership,
        guard: Guard,
        work: WorkChannels,
        connect: Connect = connect_insecure,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._work, self._connect = work, connect
        self._calling = Counter[str]()  # nodes that are called now, by caller
        self._aggregator, self.membership, self._guard = aggregator, membership, guard
        self._clock = clock or aggregator.clock
        self._changed = asyncio.Event()
        # One change of the cluster at a time; otherwise a node that registers twice in a row would be added twice.
        # Not held while an added node is probed: a hung node would block all others for a deadline.
        self._lock = asyncio.Lock()

    def add_to(self, server: Any) -> Any:
        """Adds the service to a server that has not started; returns the descriptor of its .proto file."""
        add_servicer(server, pb.DESCRIPTOR.services_by_name["Fleet"], self)
        return pb.DESCRIPTOR

    @contextlib.asynccontextmanager
    async def attend(self, end: Callable[[], object]) -> AsyncIterator[None]:
        """Ends leases while the block runs; calls ``end`` if that is no longer possible."""
        async with Background(end) as tasks:
            tasks.start(self._keep_expiring(), "expiry of leases")
            yield

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Gives a node a lease, or a new address if it has one."""
        try:
            joining, node = join_request(request, context, self._guard), None
            if joining.address and not self.membership.runs_ours(joining):
                joining = dataclasses.replace(joining, address="")  # it learns of our bundle first, and comes back
            if joining.address:
                joining = await self._called(joining)
            async with self._lock:
                lease = self.membership.register(joining, await self._end_expired())
                if joining.address:
                    node = await self._make_way(lease)
                else:
                    await self._dismiss(lease, "starts again")
            await self._add(node)
        except NonnError as exc:
            self._guard.log_refusal(str(exc), context.peer())  # a refused node keeps trying
            await context.abort(*to_status(exc))
        self._changed.set()
        artifacts = await asyncio.to_thread(self._artifacts, lease.student)
        return pb.RegisterResponse(
            lease=lease.token,
            lease_ms=round(self.membership.lease_s * 1e3),
            bundle=self._aggregator.bundle.hash,
            student=lease.student,
            artifacts=artifacts,
        )

    async def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Renews a lease."""
        known = self.holder(request.lease, context) is not None
        known = known and self.membership.renew(request.lease, self._clock(), request.rss_bytes)
        return pb.HeartbeatResponse(known=known)

    async def GetArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Streams a file to the node that it was assigned to."""
        try:
            lease = self.holder(request.lease, context)
            if lease is None:
                raise CredentialsError("unknown lease; register first")
            if request.path not in self._paths(lease.student):
                raise ForbiddenError(f"'{request.path}' is not a file of student {lease.student}")
            path = self._aggregator.bundle.path / request.path
            size = path.stat().st_size
            if request.offset > size:
                raise InputError(f"'{request.path}' has {size} bytes, the offset is {request.offset}")
        except (NonnError, OSError) as exc:
            await context.abort(*to_status(exc))
        with path.open("rb") as file:
            file.seek(request.offset)
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield pb.ArtifactChunk(data=data)
                self.membership.renew(request.lease, self._clock())  # so that a slow link does not end the lease

    async def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Takes a node out; returns when its pending requests are answered."""
        if self.holder(request.lease, context) is not None:
            async with self._lock:
                lease = self.membership.end(request.lease)
                if lease is not None:
                    await self._dismiss(lease, "left")
        return pb.DrainResponse()

    async def Work(self, replies: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Sends requests to a node that dialled in, and receives its replies."""
        first = await anext(aiter(replies), None)
        lease = self.holder(first.lease, context) if first is not None else None
        if lease is None or not lease.request.dials_out:
            await context.abort(*to_status(CredentialsError("unknown lease of a node that dials out; register first")))
            return
        name, stream = lease.request.node, self._work[lease.request.node].stream(replies)
        async with Background() as tasks, contextlib.aclosing(stream) as requests:
            # In the background, since the node is probed over this same stream before it is in the cluster.
            tasks.start(self._admit_dialled(lease), f"admission of node {name}")
            async for request in requests:
                yield request

    async def _admit_dialled(self, lease: Lease) -> None:
        name = lease.request.node
        try:
            node = None
            async with self._lock:
                if self.membership.find(lease.token) is lease:
                    node = await self._make_way(lease)
                else:  # the node has registered again meanwhile, and dials in with the new lease
                    await self._work[name].close()
            await self._add(node)
        except Exception:  # otherwise the node would wait forever
            _log.exception("node %s dialled in and could not be added; it must join again", name)
            await self.release(name, "could not be added")
            await self._work[name].close()

    async def release(self, node: str, reason: str) -> None:
        """Takes a node out; its next heartbeat fails, and it registers again."""
        async with self._lock:
            lease = self.membership.leases.get(node)
            if lease is not None and self.membership.end(lease.token) is not None:
                await self._dismiss(lease, reason)

    async def _called(self, joining: JoinRequest) -> JoinRequest:
        """Calls a node at its address, unless it is there already; returns its request, with the student it runs.

        Raises:
            MembershipError: no lease is possible.
            OverloadError: the caller has too many of these calls under way.
            UnreachableError: the address is that of another node, or the node does not answer there.
        """
        async with self._lock:
            student = self.membership.choose(joining, await self._end_expired())
        node = Node(id=joining.node, address=joining.address, student=student)
        if node not in self._aggregator.nodes:
            if self._calling[joining.caller] >= MAX_OF_CALLER:
                raise OverloadError(
                    f"node '{joining.node}': {MAX_OF_CALLER} other nodes of {joining.caller} are joining"
                )
            self._calling[joining.caller] += 1
            try:
                await check_answers(node, self._aggregator.bundle.hash, self._connect, self._guard.tls)
            finally:
                self._calling -= Counter([joining.caller])  # forgets a caller without calls
        return dataclasses.replace(joining, student=student)

    def holder(self, token: str, context: Any) -> Lease | None:
        """The lease, if it belongs to the caller: it is not accepted with another node's certificate."""
        lease = self.membership.find(token)
        if lease is not None and self._guard.tls is not None:
            return lease if self._guard.caller(context).id == lease.request.node else None
        return lease

    def _paths(self, student: int) -> list[str]:
        """Files that a node with this student needs, the manifest first."""
        return [MANIFEST, self._aggregator.bundle.manifest.students[student].file]

    def _artifacts(self, student: int) -> list[Any]:
        folder, bundle = self._aggregator.bundle.path, self._aggregator.bundle
        hashes = {
            MANIFEST: bundle.hash,
            bundle.manifest.students[student].file: bundle.manifest.students[student].sha256,
        }
        return [
            pb.Artifact(
                path=path,
                sha256=hashes.get(path) or sha256_file(folder / path),
                bytes=(folder / path).stat().st_size,
            )
            for path in self._paths(student)
        ]

    async def _make_way(self, lease: Lease) -> Node | None:
        """Takes out a node that has moved; returns the node to add, None if it is already there."""
        holder = lease.request
        wanted = Node(id=holder.node, address=holder.address, student=lease.student)
        if holder.dials_out:
            wanted = dialled(holder.node, lease.student)
        present = {node.id: node for node in self._aggregator.nodes}.get(wanted.id)
        if present == wanted:
            return None
        if present is not None:
            await self._aggregator.remove_node(wanted.id, f"moves to {wanted.address}")
        return wanted

    async def _add(self, node: Node | None) -> None:
        """Adds the result of ``_make_way``; nothing may be awaited in between, or another node could come first."""
        if node is not None:
            await self._aggregator.add_node(node)  # added at once, then probed
            _log.info("node %s joined at %s with student %d", node.id, node.address, node.student)

    async def _dismiss(self, lease: Lease, reason: str) -> None:
        """Takes a node out of the aggregator, if it is in it."""
        name = lease.request.node
        if any(node.id == name for node in self._aggregator.nodes):
            _log.info("node %s %s", name, reason)
            await self._aggregator.remove_node(name, reason)

    async def _end_expired(self) -> float:
        """Takes out the nodes whose leases have ended; returns the time at which no other one has."""
        now = self._clock()
        for lease in self.membership.expire(now):
            with contextlib.suppress(ConfigError):  # it was taken out in another way at the same moment
                await self._dismiss(lease, "was silent until its lease ended")
        return now

    async def _keep_expiring(self) -> None:
        """Ends leases when they expire; sleeps while there are none."""
        while True:
            async with self._lock:
                await self._end_expired()
            self._changed.clear()
            # Not wait_for: in Python 3.11 it swallows a cancellation that coincides with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.membership.next_expiry_s(self._clock())):
                    await self._changed.wait()
