"""Serves requests over a stream that the node opens, for a device behind a NAT that accepts no connections.

Each request is forwarded to the node's own server, which is bound to loopback, so limits, drain and errors are the same
as for a call from outside. That costs one more hop on the device.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from grpc import aio

from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.wire import CHANNEL_OPTIONS
from nonn.telemetry.background import Background

__all__ = ["serve_stream"]


async def serve_stream(stream: Any, lease: str, address: str) -> None:
    """Answers the requests of one stream until it ends.

    Args:
        stream: the call ``Fleet.Work``.
        lease: of the node.
        address: of the node's own server.

    Raises:
        grpc.aio.AioRpcError: the stream broke, or the aggregator refused it.
    """
    writing = asyncio.Lock()  # a stream accepts one message at a time

    async with aio.insecure_channel(address, options=CHANNEL_OPTIONS) as server, Background() as tasks:

        async def answer(request: Any) -> None:
            call = server.unary_unary(request.method)
            timeout = request.timeout_ms / 1e3 if request.timeout_ms else None
            try:
                payload = await call(request.payload, timeout=timeout, metadata=tuple(request.metadata.items()))
                reply = pb.WorkReply(call=request.call, payload=payload)
            except aio.AioRpcError as exc:
                reply = pb.WorkReply(call=request.call, status=exc.code().value[0], details=exc.details() or "")
            # The loop that reads the stream raises its errors.
            with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
                async with writing:
                    await stream.write(reply)

        await stream.write(pb.WorkReply(lease=lease))
        while (request := await stream.read()) is not aio.EOF:
            tasks.start(answer(request), request.method)
