"""The connection of a node to one aggregator: calls, files, and the streams of a node that dials out or senses.

A rotation of the node's certificate opens a new channel. Errors contain the reason of a failed connection, which gRPC
does not report.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from nonn.errors import CredentialsError, MembershipError, NonnError, UnreachableError
from nonn.rpc.address import with_port
from nonn.rpc.guard import Tokens
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.v1 import fleet_pb2_grpc, sensing_pb2_grpc
from nonn.rpc.wire import RECONNECTING_OPTIONS, from_status
from nonn.security.handshake import explain
from nonn.security.tls import AGGREGATOR_NAME, TlsFolder
from nonn_device.dial_out import serve_stream

if TYPE_CHECKING:
    from nonn_device.publish import Sensor  # loaded by nodes that sense only

__all__ = ["AggregatorLink"]

CALL_TIMEOUT_S = 5.0


class AggregatorLink:
    """The connection to one aggregator; opened again after a rotation of the node's certificate.

    Args:
        address: ``host:port``.
        tls: of the node; None for plain text.
        token: for joining without TLS.

    Attributes:
        lease: secret of the node's lease; empty without one.
        drained: the aggregator has drained the node, as far as is known.
        tried: set after the first attempt to register as a serving node.
    """

    def __init__(self, address: str, tls: TlsFolder | None = None, token: Tokens | None = None) -> None:
        self.address, self.lease = address, ""
        self.drained, self.tried = False, asyncio.Event()
        self._tls, self._token = tls, token
        self._channel: Any = None
        self._version: object = None
        self._credentials: object = None

    async def close(self) -> None:
        """Closes the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def call(self, method: str, request: Any) -> Any:
        """Makes one call.

        Raises:
            UnreachableError: no answer at the address.
            NonnError: the aggregator's error.
        """
        try:
            stub = await self._stub()
            return await getattr(stub, method)(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata())
        except aio.AioRpcError as exc:
            raise await self._error(exc) from exc

    async def read(self, path: str, offset: int) -> AsyncGenerator[bytes, None]:
        """Reads a file of the aggregator's bundle from an offset on, in pieces; raises the errors of ``call``."""
        stub = await self._stub()
        request = pb.GetArtifactRequest(lease=self.lease, path=path, offset=offset)
        try:
            async for chunk in stub.GetArtifact(request, metadata=self._metadata()):
                yield chunk.data
        except aio.AioRpcError as exc:
            raise await self._error(exc) from exc

    async def work(self, address: str) -> None:
        """Answers the aggregator's requests over a stream until it ends; raises the errors of ``call``.

        Args:
            address: of the node's own server.
        """
        stub = await self._stub()
        try:
            await serve_stream(stub.Work(metadata=self._metadata()), self.lease, address)
        except aio.AioRpcError as exc:
            raise await self._error(exc) from exc

    async def publish(self, sensor: Sensor) -> None:
        """Sends the windows of a sensor over a stream until it ends; raises the errors of ``call``."""
        await self._stub()
        stub = sensing_pb2_grpc.SensingStub(self._channel)  # type: ignore[no-untyped-call]
        try:
            await sensor.publish(stub.Publish(metadata=self._metadata()), self.lease)
        except aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise MembershipError(
                    f"{self.address}: takes no windows of sensors; its bundle says nothing of sensing, or its version "
                    "of nonn is older"
                ) from exc
            raise await self._error(exc) from exc

    def advertised(self, bound: str, chosen: str) -> str:
        """The address at which this aggregator reaches the node.

        Args:
            bound: ``host:port`` that the node is bound to.
            chosen: the operator's choice, a host or ``host:port``; empty for none.
        """
        host, _, port = bound.rpartition(":")
        if chosen:
            return with_port(chosen, port)
        if host not in ("0.0.0.0", "[::]"):
            return bound
        peer, _, peer_port = self.address.rpartition(":")
        # Connecting a datagram socket sends nothing; it only looks up the interface in the routing table.
        with contextlib.suppress(OSError):
            family, _, _, _, target = socket.getaddrinfo(peer.strip("[]"), int(peer_port), type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                own = str(probe.getsockname()[0])
                return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
        return f"127.0.0.1:{port}"

    async def _stub(self) -> Any:
        """A stub on a channel with the current certificate; safe to cancel at any point and to call again."""
        version = self._tls.version if self._tls else None
        if self._channel is None or version is not self._version:
            if self._tls is not None:
                # gRPC does not check revocation: the standard library checks the certificate first.
                found = await asyncio.to_thread(explain, self.address, AGGREGATOR_NAME, self._tls)
                if found.is_problem:
                    await self.close()
                    raise CredentialsError(f"{self.address}: {found.text}")
                # A change of only the list of revoked certificates does not close the connection.
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
        """Maps a failed call; diagnoses a failed connection again, since gRPC does not report the reason."""
        if exc.code() is grpc.StatusCode.UNIMPLEMENTED:
            return MembershipError(f"{self.address}: accepts no joins; start it with: nonn serve --joins")
        error = from_status(exc, self.address)
        if isinstance(error, UnreachableError):
            found = await asyncio.to_thread(explain, self.address, AGGREGATOR_NAME if self._tls else None, self._tls)
            if found.is_problem:
                return CredentialsError(f"{self.address}: {found.text}")
        return error
