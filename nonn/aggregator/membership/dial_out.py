"""Requests to nodes that cannot be called: they dial out and receive requests over the stream that they opened.

A ``WorkChannel`` replaces the gRPC channel to the node: the fan-out, the probes and the monitor use both alike. It
lasts as long as the node is in the cluster, across several streams; while there is no stream, calls fail at once, as
they do when a node refuses a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from itertools import count
from typing import Any

import grpc
from grpc import aio

from nonn.aggregator.fanout import Connect
from nonn.aggregator.inventory import Node
from nonn.aggregator.streaming import fail, status_code
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.telemetry.background import Background

__all__ = ["WorkChannel", "WorkChannels", "dialled"]

_PREFIX = "dial-out:"

Metadata = Iterable[tuple[str, str]]


def dialled(node: str, student: int) -> Node:
    """The entry of a node that dials out; its address is only a marker."""
    return Node(id=node, address=f"{_PREFIX}{node}", student=student)


class WorkChannels:
    """The channels of all nodes that dial out, by node."""

    def __init__(self) -> None:
        self._channels: dict[str, WorkChannel] = {}

    def __getitem__(self, node: str) -> WorkChannel:
        if node not in self._channels:
            self._channels[node] = WorkChannel(lambda channel: self._forget(node, channel))
        return self._channels[node]

    def _forget(self, node: str, channel: WorkChannel) -> None:
        if self._channels.get(node) is channel:
            del self._channels[node]

    def or_else(self, connect: Connect) -> Connect:
        """The channel to any node: a ``WorkChannel`` if it dials out, otherwise ``connect`` opens it."""
        return lambda node: self[node.id] if node.address.startswith(_PREFIX) else connect(node)


class WorkChannel:
    """The channel of all calls to one node that dials out.

    Args:
        forget: called with the channel when it begins to close, so that a node that comes back gets a new one.
    """

    def __init__(self, forget: Callable[[WorkChannel], object] = lambda channel: None) -> None:
        self._forget, self._ids = forget, count(1)
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._unsent: dict[int, Any] = {}  # requests that no stream has sent yet, oldest first
        self._wake = asyncio.Event()
        self._stream: object = None

    def unary_unary(self, method: str) -> Callable[..., asyncio.Future[bytes]]:
        """A callable like that of a gRPC channel, for bytes; its calls can be awaited and cancelled."""

        def call(
            request: bytes,
            timeout: float | None = None,
            metadata: Metadata | None = None,
            wait_for_ready: bool | None = None,
            **_: Any,
        ) -> asyncio.Future[bytes]:
            loop, number = asyncio.get_running_loop(), next(self._ids)
            future: asyncio.Future[bytes] = loop.create_future()
            self._pending[number] = future
            future.add_done_callback(lambda _: self._drop(number))
            if self._stream is None and not wait_for_ready:
                fail(future, grpc.StatusCode.UNAVAILABLE, "the node has not dialled in")
                return future
            texts = {key: value for key, value in metadata or () if isinstance(value, str)}
            milliseconds = 0 if timeout is None else max(1, round(timeout * 1e3))
            self._unsent[number] = pb.WorkRequest(
                call=number, method=method, payload=request, timeout_ms=milliseconds, metadata=texts
            )
            self._wake.set()
            if timeout is not None:
                timer = loop.call_later(timeout, fail, future, grpc.StatusCode.DEADLINE_EXCEEDED, "no reply in time")
                future.add_done_callback(lambda _: timer.cancel())
            return future

        return call

    async def stream(self, replies: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Requests for the node while its stream lasts; a newer stream of the node ends this one.

        Args:
            replies: the node's replies.
        """
        self._stream = mine = object()
        self._wake.set()  # an older stream wakes up and ends
        try:
            async with Background() as tasks:
                tasks.start(self._read(replies, mine), "reading from a node that dials out")
                while self._stream is mine:
                    while self._stream is mine and self._unsent:
                        yield self._unsent.pop(next(iter(self._unsent)))
                    self._wake.clear()
                    if self._stream is mine:
                        await self._wake.wait()
        finally:
            self._hang_up(mine)

    async def close(self, grace: float | None = None) -> None:
        """Ends every call; those under way get ``grace_s`` to be answered."""
        self._forget(self)
        if self._pending and grace:
            await asyncio.wait([*self._pending.values()], timeout=grace)
        self._hang_up(self._stream)

    async def _read(self, replies: AsyncIterator[Any], stream: object) -> None:
        """Gives each reply to the call that waits for it; a reply without a call is late."""
        try:
            async for reply in replies:
                future = self._pending.get(reply.call)
                if future is None or future.done():
                    continue
                if reply.status:
                    fail(future, status_code(reply.status), reply.details)
                else:
                    future.set_result(reply.payload)
        except aio.AioRpcError:
            pass
        finally:
            self._hang_up(stream)

    def _hang_up(self, stream: object) -> None:
        """Ends a stream, unless a newer one has taken its place, and fails the calls that depend on it."""
        if self._stream is not stream:
            return
        self._stream = None
        self._wake.set()
        for future in tuple(self._pending.values()):
            fail(future, grpc.StatusCode.UNAVAILABLE, "the node's stream has ended")

    def _drop(self, number: int) -> None:
        self._pending.pop(number, None)
        self._unsent.pop(number, None)
