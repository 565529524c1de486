"""``nonn-device join``: a node that asks aggregators for work and keeps its place with them.

One aggregator gives the student; the others are told which one that is. Each has a task of its own that registers,
renews the lease, and starts again when the aggregator was restarted or could not be reached: with back-off and
jitter, so that a hundred nodes do not come back in the same millisecond (Brooker 2015, Exponential Backoff And
Jitter, AWS Architecture Blog). How to sleep is an argument, and cancelling the task ends any wait.

Leaving is in order: every aggregator is told first, then what is in flight is answered, then the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import random
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from nonn import __version__
from nonn.bundle import Bundle
from nonn.errors import CredentialsError, MembershipError, NonnError, UnreachableError
from nonn.rpc.address import with_port
from nonn.rpc.background import Background
from nonn.rpc.guard import Tokens
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.v1 import fleet_pb2_grpc
from nonn.rpc.wire import RECONNECTING_OPTIONS, from_status
from nonn.security.handshake import explain
from nonn.security.tls import AGGREGATOR_NAME, TlsFolder
from nonn_device.artifacts import Artifact, Store
from nonn_device.dial_out import serve_stream
from nonn_device.vitals import resident_bytes

__all__ = ["Backoff", "Link", "Session"]

CALL_TIMEOUT_S = 5.0
BACKOFF_S = (0.1, 1.5)  # the first and the longest: an aggregator that is back has its nodes within two seconds
HEARTBEATS = 3  # in the time of a lease

Sleep = Callable[[float], Awaitable[None]]

_log = logging.getLogger(__name__)


class Backoff:
    """How long to wait before the next attempt: twice as long each time, up to a limit, and between half and all of it.

    Args:
        sleep: waits some seconds.
        rng: gives the jitter.
    """

    def __init__(self, sleep: Sleep = asyncio.sleep, rng: random.Random | None = None) -> None:
        self._sleep, self._rng = sleep, rng or random.Random()
        self._next_s, self._limit_s = BACKOFF_S

    def reset(self) -> None:
        """An attempt succeeded."""
        self._next_s = BACKOFF_S[0]

    async def wait(self) -> None:
        """Waits before the next attempt."""
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, self._limit_s)
        await self._sleep(wait_s * self._rng.uniform(0.5, 1.0))


class Link:
    """The connection to one aggregator, made anew when the node's certificate is rotated.

    Args:
        address: ``host:port``.
        tls: of the node; None for plain text.
        token: to join without TLS.
    """

    def __init__(self, address: str, tls: TlsFolder | None = None, token: Tokens | None = None) -> None:
        self.address, self.lease = address, ""
        self._tls, self._token = tls, token
        self._channel: Any = None
        self._version: object = None
        self._credentials: object = None

    async def close(self) -> None:
        """Ends the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def call(self, method: str, request: Any) -> Any:
        """Makes one call.

        Raises:
            UnreachableError: nobody answers at the address.
            NonnError: what the aggregator answers instead.
        """
        try:
            stub = await self._stub()
            return await getattr(stub, method)(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata())
        except aio.AioRpcError as exc:
            raise await self._error(exc) from exc

    async def read(self, path: str, offset: int) -> AsyncGenerator[bytes, None]:
        """A file of the aggregator's bundle from an offset on, in pieces; raises as ``call`` does."""
        stub = await self._stub()
        request = pb.GetArtifactRequest(lease=self.lease, path=path, offset=offset)
        try:
            async for chunk in stub.GetArtifact(request, metadata=self._metadata()):
                yield chunk.data
        except aio.AioRpcError as exc:
            raise await self._error(exc) from exc

    async def work(self, address: str) -> None:
        """Answers what the aggregator asks over a stream, until that ends; raises as ``call`` does.

        Args:
            address: of the node's own server.
        """
        stub = await self._stub()
        try:
            await serve_stream(stub.Work(metadata=self._metadata()), self.lease, address)
        except aio.AioRpcError as exc:
            raise await self._error(exc) from exc

    def advertised(self, bound: str, wish: str) -> str:
        """The address at which this aggregator finds the node.

        Args:
            bound: ``host:port`` that the node is bound to.
            wish: the operator's, a host or ``host:port``; empty for none.
        """
        host, _, port = bound.rpartition(":")
        if wish:
            return with_port(wish, port)
        if host not in ("0.0.0.0", "[::]"):
            return bound
        peer, _, peer_port = self.address.rpartition(":")
        # Connecting a datagram socket sends nothing; it only asks the routing table which interface leads there.
        with contextlib.suppress(OSError):
            family, _, _, _, target = socket.getaddrinfo(peer.strip("[]"), int(peer_port), type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                own = str(probe.getsockname()[0])
                return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
        return f"127.0.0.1:{port}"

    async def _stub(self) -> Any:
        """A stub on a channel with the present certificate; may be cancelled anywhere and called again."""
        version = self._tls.version if self._tls else None
        if self._channel is None or version is not self._version:
            if self._tls is not None:
                # gRPC knows of no revocation: the standard library looks at the certificate first.
                if text := await asyncio.to_thread(explain, self.address, AGGREGATOR_NAME, self._tls):
                    await self.close()
                    raise CredentialsError(f"{self.address}: {text}")
                # A list of revoked certificates that has changed is no reason to break the connection.
                if self._credentials != self._tls.credentials_version:
                    await self.close()
            if self._channel is None:
                self._channel = self._connect()
            self._version = version
        return fleet_pb2_grpc.FleetStub(self._channel)  # type: ignore[no-untyped-call]

    def _connect(self) -> Any:
        if self._tls is None:
            return aio.insecure_channel(self.address, options=RECONNECTING_OPTIONS)
        self._credentials = self._tls.credentials_version
        credentials, options = self._tls.channel_options(AGGREGATOR_NAME)
        return aio.secure_channel(self.address, credentials, options=(*RECONNECTING_OPTIONS, *options))

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._token.first}"),) if self._token else ()

    async def _error(self, exc: aio.AioRpcError) -> NonnError:
        """What went wrong; a connection that failed is looked at again, since gRPC does not tell why."""
        if exc.code() is grpc.StatusCode.UNIMPLEMENTED:
            return MembershipError(f"{self.address}: takes no joins; start it with: nonn serve --joins")
        error = from_status(exc, self.address)
        if isinstance(error, UnreachableError):
            text = await asyncio.to_thread(explain, self.address, AGGREGATOR_NAME if self._tls else None, self._tls)
            if text:
                return CredentialsError(f"{self.address}: {text}")
        return error


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the operator says about the node.

    Attributes:
        node: its id.
        student: that it shall run; None leaves that to the aggregator.
        advertise: host or ``host:port`` at which it is found; empty for what the system says.
        max_model_bytes: largest student that it can hold; 0 for any.
        dials_out: nobody can call it; work comes over a stream that it opens.
    """

    node: str
    student: int | None = None
    advertise: str = ""
    max_model_bytes: int = 0
    dials_out: bool = False


class Session:
    """A node's places in one or several clusters.

    Args:
        wish: what the operator says.
        links: the aggregators, in order of preference.
        store: where the student's files are kept.
        sleep: waits some seconds.
    """

    def __init__(self, wish: Wish, links: list[Link], store: Store, sleep: Sleep = asyncio.sleep) -> None:
        self._wish, self._links, self._store, self._sleep = wish, links, store, sleep
        self._instance = secrets.token_hex(16)
        self._bundle, self._student, self._runtime = "", wish.student, ""
        self.moved = False
        self.failure: NonnError | None = None

    async def prepare(self) -> tuple[Bundle, int]:
        """Gets a student from the first aggregator that has one to give, and its files.

        Returns:
            The bundle and the number of the student.

        Raises:
            NonnError: no aggregator takes this node, and waiting would not help.
        """
        self.moved = False
        held = self._store.held()
        if held is not None and self._wish.student in (None, held[1]):
            self._bundle, self._student = held
        if self._wish.student is not None:
            self._bundle = ""  # the operator's choice is meant for whatever bundle the cluster runs
        backoff, said = Backoff(self._sleep), ""
        while True:
            errors = []
            for link in self._links:
                try:
                    response = await self._register(link, "")
                    self._bundle, self._student = response.bundle, response.student
                    artifacts = [Artifact(a.path, a.sha256, a.bytes) for a in response.artifacts]
                    bundle = await self._store.fetch(response.bundle, response.student, artifacts, link.read)
                    _log.info("%s gives student %d of bundle %.12s…", link.address, response.student, bundle.hash)
                    return bundle, response.student
                except NonnError as exc:
                    errors.append(exc)
            final = [error for error in errors if not isinstance(error, UnreachableError)]
            if len(final) == len(errors):
                raise final[0]
            text = "; ".join(map(str, errors))
            if text != said:
                _log.warning("%s; trying again", text)
            said = text
            await backoff.wait()

    @contextlib.asynccontextmanager
    async def attend(self, address: str, end: Callable[[], None], runtime: str = "") -> AsyncIterator[None]:
        """Holds the places while the block runs; leaves them in order afterwards.

        Args:
            address: ``host:port`` that the node is bound to.
            end: ends the server, when an aggregator refuses this node for good or gives it another student.
            runtime: that runs the student.
        """
        self._runtime = runtime
        for link in self._links:
            link.lease = ""  # that of ``prepare`` was for the files
        async with Background(end) as working:
            for link in self._links if self._wish.dials_out else ():
                working.start(self._keep_working(link, address), f"stream to {link.address}")
            try:
                async with Background(end) as keeping:
                    for link in self._links:
                        keeping.start(self._keep(link, address, end), f"membership of {link.address}")
                    yield
            finally:
                # What is in flight on the streams is answered before the aggregator says that the node may go.
                await asyncio.gather(*map(self._leave, self._links))

    async def close(self) -> None:
        """Ends the connections."""
        await asyncio.gather(*(link.close() for link in self._links))

    async def _keep(self, link: Link, address: str, end: Callable[[], None]) -> None:
        """Registers with one aggregator and renews the lease for as long as the node serves."""
        backoff, said, lease_s, pause_s = Backoff(self._sleep), "", 0.0, 0.0
        while True:
            try:
                if not lease_s:
                    lease_s = await self._place(link, address, end)
                    _log.info("%s: in the cluster with student %s", link.address, self._student)
                    pause_s = lease_s / HEARTBEATS
                await self._sleep(pause_s)
                beat = await link.call("Heartbeat", pb.HeartbeatRequest(lease=link.lease, rss_bytes=resident_bytes()))
                pause_s, said = lease_s / HEARTBEATS, ""
                backoff.reset()
                if not beat.known:
                    _log.warning("%s: knows nothing of this node any more; joining again", link.address)
                    lease_s = 0.0
            except MembershipError as exc:
                # Another device has the id, and waiting would not change that.
                self.failure = exc
                end()
                return
            except NonnError as exc:
                if str(exc) != said:
                    _log.warning("%s; trying again", exc)
                said, pause_s = str(exc), 0.0  # what failed is tried again as soon as the back-off says
                await backoff.wait()

    async def _keep_working(self, link: Link, address: str) -> None:
        """Holds a stream open over which one aggregator asks."""
        backoff = Backoff(self._sleep)
        while True:
            started = asyncio.get_running_loop().time()
            if link.lease:
                try:
                    await link.work(address)
                except NonnError as exc:
                    _log.debug("%s; dialling again", exc)  # the heartbeat says what is wrong
            if asyncio.get_running_loop().time() - started > BACKOFF_S[1]:
                backoff.reset()
            await backoff.wait()

    async def _place(self, link: Link, address: str, end: Callable[[], None]) -> float:
        """Registers as a node that serves; returns the seconds of the lease."""
        told = "" if self._wish.dials_out else link.advertised(address, self._wish.advertise)
        response = await self._register(link, told)
        if (response.bundle, response.student) != (self._bundle, self._student):
            # An aggregator with another bundle. Only where nobody else counts on the present student may it change.
            if any(other.lease for other in self._links if other is not link):
                await self._leave(link)
                raise UnreachableError(
                    f"{link.address}: serves bundle {response.bundle[:12]}…, this node one of {self._bundle[:12]}… for "
                    "another aggregator; give both the same bundle"
                )
            _log.warning("%s: gives student %d of another bundle", link.address, response.student)
            self.moved = True
            end()
            await asyncio.Event().wait()  # until the server ends
        return float(response.lease_ms) / 1e3

    async def _register(self, link: Link, address: str) -> Any:
        """Asks for a place."""
        request = pb.RegisterRequest(
            node=self._wish.node,
            instance=self._instance,
            fingerprint=self._store.fingerprint,
            address=address,
            bundle=self._bundle,
            dials_out=self._wish.dials_out,
            capabilities=pb.Capabilities(
                version=__version__,
                runtime=self._runtime,
                machine=platform.machine(),
                max_model_bytes=self._wish.max_model_bytes,
            ),
        )
        if self._student is not None:
            request.student = self._student
        response = await link.call("Register", request)
        link.lease = response.lease
        return response

    async def _leave(self, link: Link) -> None:
        """Tells an aggregator; one that cannot be reached will find out when the lease ends."""
        if link.lease:
            with contextlib.suppress(NonnError):
                await link.call("Drain", pb.DrainRequest(lease=link.lease))
        link.lease = ""
