"""A TCP proxy in front of each node, which imitates links and network faults in a live cluster.

The proxy is between aggregator and node. It delays bytes by the link's latency, jitter and bandwidth, and on request
delays replies further, corrupts them, is silent for a while, or closes every connection and refuses new ones. A killed
or stopped node looks the same through it: the proxy opens and closes connections as the node does.

Only messages inside HTTP/2's DATA frames are corrupted (RFC 9113, section 4.1): the node answers garbage on an intact
connection.

Timers of an event loop have a resolution of a millisecond, so a link of a few hundred microseconds is slower than
configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from nonn.telemetry.background import Background
from nonn_sim.scenario import LinkConfig

__all__ = ["Proxies", "Proxy"]

CHUNK = 65536
QUEUED_CHUNKS = 1024  # in flight in one direction; then the sender waits, as with a full buffer
FRAME_HEADER, DATA = 9, 0  # HTTP/2: length in 3 bytes, type in the fourth
GRPC_PREFIX = 5  # compression flag and length: kept, so that the connection itself stays intact
_INVERT = bytes(255 - value for value in range(256))


class _Frames:
    """Finds the messages in one direction of an HTTP/2 connection, from its first byte on."""

    def __init__(self) -> None:
        self._header, self._left, self._message, self._prefix = b"", 0, False, 0

    def carry(self, data: bytes, spoil: bool) -> bytes:
        """The next bytes, with the bits of messages inverted if ``spoil`` is set."""
        carried, at = bytearray(data), 0
        while at < len(data):
            if not self._left:
                part = data[at : at + FRAME_HEADER - len(self._header)]
                self._header, at = self._header + part, at + len(part)
                if len(self._header) == FRAME_HEADER:
                    self._left = int.from_bytes(self._header[:3])
                    self._message, self._prefix, self._header = self._header[3] == DATA, GRPC_PREFIX, b""
                continue
            end = min(len(data), at + self._left)
            kept = min(self._prefix, end - at)
            if self._message and spoil:
                carried[at + kept : end] = data[at + kept : end].translate(_INVERT)
            self._left, self._prefix, at = self._left - (end - at), self._prefix - kept, end
        return bytes(carried)


class Proxy:
    """One node's link.

    Args:
        upstream: ``host:port`` of the node.
        link: options of the link; loss is ignored, since TCP would repeat lost bytes.
        seed: seed of the jitter.

    Attributes:
        delay_s: additional delay of replies.
        corrupt: whether replies are corrupted.
        flip: share of the chunks of bytes, in both directions, in which one random bit is flipped.
        flipped: number of bits flipped so far.
    """

    def __init__(self, upstream: str, link: LinkConfig, seed: int) -> None:
        host, _, port = upstream.rpartition(":")
        self._host, self._port, self._link = host, int(port), link
        self._random = random.Random(seed)
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks = Background()
        self._server: asyncio.Server | None = None
        self._partitioned = False
        self._passing = asyncio.Event()
        self._passing.set()
        self.delay_s, self.corrupt, self.flip, self.flipped = 0.0, False, 0.0, 0

    async def start(self) -> str:
        """Listens on a free port of this machine and returns its address."""

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._tasks.start(self._serve(reader, writer), f"connection to {self._host}:{self._port}")

        self._server = await asyncio.start_server(connected, "127.0.0.1", 0)
        return "127.0.0.1:" + str(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Closes every connection."""
        assert self._server is not None
        self._server.close()
        self.partition(True)
        await self._tasks.close()

    def partition(self, on: bool) -> None:
        """Closes every connection and refuses new ones, or stops doing so."""
        self._partitioned = on
        if on:
            for writer in tuple(self._connections):
                writer.transport.abort()

    def silence(self, on: bool) -> None:
        """Forwards nothing in either direction; later delivers the retained bytes, as TCP does after an outage."""
        if on:
            self._passing.clear()
        else:
            self._passing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until either side closes it."""
        if self._partitioned:
            writer.transport.abort()
            return
        both = {writer}
        try:
            node_reader, node_writer = await asyncio.open_connection(self._host, self._port)
            both.add(node_writer)
            self._connections |= both
            async with Background() as tasks:
                requests = tasks.start(self._pipe(reader, node_writer, False), "requests of a connection")
                replies = tasks.start(self._pipe(node_reader, writer, True), "replies of a connection")
                await asyncio.wait((requests, replies), return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the node refuses the connection, so the proxy does too
        finally:
            self._connections -= both
            for each in both:
                each.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool) -> None:
        """Forwards one direction; returns when its sender has finished or its receiver has closed."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
        loop, link, free_at, last_at = asyncio.get_running_loop(), self._link, 0.0, 0.0
        frames = _Frames()
        async with Background() as tasks:
            tasks.start(self._send(queue, writer), "sending of a connection")
            with contextlib.suppress(OSError):
                while data := await reader.read(CHUNK):
                    free_at = max(free_at, loop.time())
                    if link.bandwidth_bytes_per_s:
                        free_at += len(data) / link.bandwidth_bytes_per_s
                    at = free_at + link.latency_s + (self.delay_s if replies else 0.0)
                    if link.jitter_s:
                        at += self._random.expovariate(1 / link.jitter_s)
                    last_at = max(last_at, at)  # bytes do not overtake each other
                    data = frames.carry(data, self.corrupt) if replies else data
                    flip = self.flip and self._random.random() < self.flip
                    await queue.put((last_at, self._flipped(data) if flip else data))

    def _flipped(self, data: bytes) -> bytes:
        """Bytes with one bit flipped."""
        place, changed = self._random.randrange(8 * len(data)), bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        self.flipped += 1
        return bytes(changed)

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        """Writes chunks when they are due."""
        loop = asyncio.get_running_loop()
        while True:
            at, data = await queue.get()
            wait_s = at - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            await self._passing.wait()
            writer.write(data)
            with contextlib.suppress(OSError):
                await writer.drain()


class Proxies:
    """A proxy for each node, in a separate thread.

    Args:
        upstreams: addresses of the nodes [N].
        links: their links [N].
        seed: seed of the jitter.
    """

    def __init__(self, upstreams: Sequence[str], links: Sequence[LinkConfig], seed: int = 0) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies = [
            Proxy(upstream, link, seed + i) for i, (upstream, link) in enumerate(zip(upstreams, links, strict=True))
        ]
        self.addresses: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self.addresses = [self._call(proxy.start()) for proxy in self._proxies]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self._proxies:
            self._call(proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def change(self, node: int, what: Callable[[Proxy], None]) -> None:
        """Changes one proxy, in the proxies' thread."""

        async def change() -> None:
            what(self._proxies[node])

        self._call(change())

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
