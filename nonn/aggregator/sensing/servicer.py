"""The streams of nodes that sense, and of clients that watch: ``nonn.rpc.v1.Sensing`` and ``Answers``.

A node's stream belongs to its lease. Over it the aggregator measures the node's clock: often at first, then every two
seconds, and every thirty while the node rests; a probe follows a window, when the node's radio is awake anyway. As soon
as the clock is known the node learns where windows end, and again when that has moved on its clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from grpc import aio

from nonn.aggregator.membership.leases import Lease
from nonn.aggregator.sensing.hub import Hub
from nonn.errors import ConfigError, CredentialsError, NonnError
from nonn.rpc.guard import RefusalLog
from nonn.rpc.registration import add_servicer
from nonn.rpc.v1 import sensing_pb2 as pb
from nonn.rpc.wire import to_status
from nonn.security.handshake import LOG_AGAIN_S
from nonn.sensing.clocks import Exchange
from nonn.telemetry.background import Background

__all__ = ["SensingServicer"]

FIRST_PROBES, FIRST_S = 8, 0.05  # to know the clock before the first window
PROBE_S, REST_PROBE_S = 2.0, 30.0
MOVED = 0.25  # of the interval of the rate: windows are moved if the grid is that far away on the node's clock

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Stream:
    """One node's stream."""

    lease: Lease
    directions: asyncio.Queue[Any]
    asked: dict[int, float]
    phase: float | None = None
    end_us: int = 0  # of the last window
    window: asyncio.Event = field(default_factory=asyncio.Event)  # one has arrived
    woken: asyncio.Event = field(default_factory=asyncio.Event)  # after a rest


class SensingServicer:
    """Both services.

    Args:
        hub: of the cluster.
        holder: the lease of a caller by its token; None if it has none.
    """

    def __init__(self, hub: Hub, holder: Callable[[str, Any], Lease | None]) -> None:
        self._hub, self._holder = hub, holder
        self._streams, self._refusals = dict[str, _Stream](), RefusalLog()
        self._stepped = dict[str, float]()  # when a node's step was logged
        hub.directed = self._direct

    def _direct(self, node: str, rests: bool) -> None:
        """Tells a node to rest or to work."""
        if node in self._streams:
            stream = self._streams[node]
            stream.directions.put_nowait(pb.Direction(duty=pb.Duty(rest=rests)))
            (stream.woken.clear if rests else stream.woken.set)()

    def add_to(self, server: Any) -> Any:
        """Adds both services to a server that has not started; returns the descriptor of their .proto file."""
        for name in ("Sensing", "Answers"):
            add_servicer(server, pb.DESCRIPTOR.services_by_name[name], self)
        return pb.DESCRIPTOR

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Streams answers to a client."""
        with self._hub.watching() as watcher:
            while True:
                answer, skipped = await watcher.take()
                if answer is None:
                    return
                yield answer.to_message(skipped)

    async def Publish(self, publications: AsyncIterator[Any], context: Any) -> AsyncGenerator[Any, None]:  # noqa: N802
        """Takes the windows of a node; yields probes of its clock and the grid."""
        hub, first = self._hub, await anext(aiter(publications), None)
        try:
            stream = self._opened(first, context)
        except NonnError as exc:
            self._refusals.add(f"a node's sensor is refused: {exc}", context.peer())
            await context.abort(*to_status(exc))
            return
        node = stream.lease.request.node
        try:
            async with Background() as tasks:
                tasks.start(self._read(publications, stream, context), f"windows of node {node}")
                tasks.start(self._probe(stream), f"clock of node {node}")
                while (direction := await stream.directions.get()) is not None:
                    if isinstance(direction, NonnError):
                        await context.abort(*to_status(direction))
                    if direction.HasField("probe"):
                        stream.asked[direction.probe.number] = hub.clock()
                    yield direction
        finally:
            if self._streams.get(node) is stream:
                del self._streams[node]
                hub.alignment.leave(node)
                hub.woken()

    def _opened(self, first: Any, context: Any) -> _Stream:
        """Checks the opening of a stream.

        Raises:
            CredentialsError: no such lease.
            MembershipError: another node senses the unit.
            ConfigError: the node replays at another speed, or sends raw samples that this aggregator does not store.
        """
        hub, opening = self._hub, first.opening if first is not None else pb.Opening()
        lease = self._holder(opening.lease, context)
        if lease is None:
            raise CredentialsError("unknown lease of a node that senses; register first")
        node = lease.request.node
        speed = opening.speed or 1.0
        if speed != hub.options.speed:
            raise ConfigError(
                f"node '{node}' replays at {speed:g} times the speed of life, the aggregator expects "
                f"{hub.options.speed:g}: give both the same, nonn serve --replay-speed and --source csv:FILE?speed="
            )
        if opening.raw and hub.raw is None:
            raise ConfigError(
                f"node '{node}' sends raw samples (--send-raw), and this aggregator takes none: start it with "
                "--raw DIR, or leave --send-raw out"
            )
        hub.alignment.join(node, lease.student, hub.clock())
        old = self._streams.get(node)
        stream = self._streams[node] = _Stream(lease, asyncio.Queue(), {})
        if old is not None:
            old.directions.put_nowait(None)
        return stream

    async def _read(self, publications: AsyncIterator[Any], stream: _Stream, context: Any) -> None:
        """Reads what the node sends until its stream or its lease ends."""
        hub, lease = self._hub, stream.lease
        node, token = lease.request.node, lease.token
        spec = hub.spec_of(lease.student)
        hop_us = round(1e6 * spec.hop_s)
        try:
            async for publication in publications:
                if self._streams.get(node) is not stream:
                    break
                if publication.HasField("echo"):
                    self._echo(stream, publication.echo, hub.clock())
                elif publication.HasField("window"):
                    if self._holder(token, context) is None:
                        break
                    window, num_bytes = publication.window, publication.ByteSize() - len(publication.window.raw)
                    stream.end_us = window.end_us = window.end_us or stream.end_us + hop_us
                    if window.raw and hub.raw is not None:
                        await asyncio.to_thread(hub.raw.add, node, spec, window.end_us / 1e6, window.raw)
                    hub.window(node, lease.student, window, num_bytes)
                    stream.window.set()
            stream.directions.put_nowait(None)
        except aio.AioRpcError:
            stream.directions.put_nowait(None)
        except NonnError as exc:
            self._refusals.add(str(exc), context.peer())
            stream.directions.put_nowait(exc)
        except BaseException:
            stream.directions.put_nowait(None)
            raise

    def _echo(self, stream: _Stream, echo: Any, now: float) -> None:
        """Adds an exchange; sends the node the place of the grid if that has changed."""
        hub, node = self._hub, stream.lease.request.node
        hub.charged(node, echo.battery)
        asked = stream.asked.pop(echo.number, None)
        if asked is None:
            return
        if hub.alignment.exchange(node, Exchange(asked, echo.received_us / 1e6, echo.sent_us / 1e6, now)):
            self._log_step(node, now)
        phase, hop_s = hub.alignment.phase(node, now), hub.alignment.config.hop_s
        if phase is None:
            return
        moved = abs((phase - (stream.phase or 0.0)) % hop_s)
        if stream.phase is None or min(moved, hop_s - moved) > MOVED / hub.spec_of(stream.lease.student).rate_hz:
            stream.phase = phase
            stream.directions.put_nowait(pb.Direction(grid=pb.Grid(end_us=round(phase * 1e6), implied=True)))

    def _log_step(self, node: str, now: float) -> None:
        """Logs that a node's clock has stepped, once in ten seconds; ``steps`` in the state counts every time."""
        self._stepped = {other: at for other, at in self._stepped.items() if now - at < LOG_AGAIN_S}
        if node not in self._stepped:
            self._stepped[node] = now
            _log.warning("node %s: its clock has stepped", node)

    async def _probe(self, stream: _Stream) -> None:
        """Asks for the node's clock for as long as the stream is open."""
        number = 0
        while True:
            number += 1
            stream.directions.put_nowait(pb.Direction(probe=pb.Probe(number=number)))
            for lost in [n for n in stream.asked if n < number - FIRST_PROBES]:
                del stream.asked[lost]
            if number < FIRST_PROBES:
                await asyncio.sleep(FIRST_S)
                continue
            record = self._hub.alignment.nodes.get(stream.lease.request.node)
            if record is not None and record.rests:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REST_PROBE_S):
                        await stream.woken.wait()
            else:
                await asyncio.sleep(PROBE_S)
            # After a window the radio of the node is awake anyway.
            stream.window.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.5 * self._hub.alignment.config.hop_s / self._hub.options.speed):
                    await stream.window.wait()
