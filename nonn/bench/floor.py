"""The floor: a bare grpc.aio server that fans out to bare grpc.aio servers, bytes in and bytes out.

``python -m nonn.bench.floor REPLY_BYTES [BYTES_TO_EACH ADDRESS …]`` prints its address as a line of JSON and ends when
its standard input closes. Without addresses it answers any call with REPLY_BYTES bytes, as a node does. With addresses
it first sends BYTES_TO_EACH bytes to each and waits for all, as an aggregator does. It has nothing else:
no deadline, no check, no arithmetic, no serialiser.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import Any

import grpc
from grpc import aio

from nonn.rpc.wire import INFER_METHOD


class _Bare(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handles any method, bytes to bytes."""

    def __init__(self, answer: Any) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, details: Any) -> Any:
        return self._handler


async def serve(reply_bytes: int, bytes_to_each: int, addresses: list[str]) -> None:
    """Serves until standard input closes."""
    reply, request = bytes(reply_bytes), bytes(bytes_to_each)
    # Requests and replies have no meaning: zeros of the right length.
    calls = [aio.insecure_channel(address).unary_unary(INFER_METHOD) for address in addresses]

    async def answer(body: bytes, context: Any) -> bytes:
        if calls:
            await asyncio.gather(*(call(request) for call in calls))
        return reply

    server = aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Bare(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"event": "ready", "address": f"127.0.0.1:{port}", "pid": os.getpid()}), flush=True)
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=watch, daemon=True).start()
    await closed.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0, sys.argv[3:]))
