"""A node that senses: source → windows → student → features, over a stream that the node opens to each aggregator.

A camera has pictures instead of windows; all else is the same. Raw samples stay in this process unless ``--send-raw``
is given. Each aggregator has its own grid, so each stream cuts its own windows from the same samples. While a stream is
broken its windows are dropped: an answer would be too old. A stream at rest drops them too: the student does not run,
and the radio carries probes of the clock only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from grpc import aio

from nonn.rpc.v1 import sensing_pb2 as pb
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn.sensing.cutter import GRACE_S, NO_DATA, Cutter, Window
from nonn.sensing.pictures import PictureCutter
from nonn.sensing.windows import Windower
from nonn.telemetry.background import Background
from nonn_device.sources import SampleSource
from nonn_device.vitals import battery_percent

__all__ = ["Sensor"]

Features = Callable[[Any], Awaitable[bytes]]

HELD = 4  # windows that wait for a slow link; older ones would come too late anyway
TICK_S = 0.25  # at most, between two looks for a silent sensor
BATTERY_S = 60.0  # between two readings
NEAR_US = 10  # an end so near to its place on the grid is left out of the message; clocks are known to a millisecond

_log = logging.getLogger(__name__)


class Sensor:
    """The sensor of a node.

    Args:
        spec: what the unit measures.
        source: its samples.
        clock: the node's.
        features: window [C, T], or picture [C, H, W], → features as they are sent.
        raw: send the windows too.
    """

    def __init__(
        self, spec: SensingSpec, source: SampleSource, clock: DataClock, features: Features, *, raw: bool = False
    ) -> None:
        self._spec, self._source, self._clock = spec, source, clock
        self._features, self._raw = features, raw
        self._streams: set[_Stream] = set()
        self._reasons: dict[str, int] = {}

    async def run(self) -> None:
        """Reads the source until it ends.

        Raises:
            NonnError: the source is not as it should be.
        """
        async with Background() as tasks:
            tasks.start(self._tick(), "looking for a silent sensor")
            async for samples in self._source():
                for stream in tuple(self._streams):
                    stream.put(stream.cutter.add(*samples))
        _log.info("the source has ended")

    async def publish(self, call: Any, lease: str) -> None:
        """Sends windows over one stream until it ends.

        Args:
            call: ``Sensing.Publish``.
            lease: of the node.

        Raises:
            grpc.aio.AioRpcError: the stream broke, or the aggregator refused it.
        """
        stream = _Stream(PictureCutter(self._spec) if self._spec.frame else Windower(self._spec))
        opening = pb.Opening(lease=lease, speed=self._clock.speed, raw=self._raw)
        await call.write(pb.Publication(opening=opening))
        self._streams.add(stream)
        try:
            async with Background() as tasks:
                tasks.start(self._send(call, stream), "sending windows")
                while (direction := await call.read()) is not aio.EOF:
                    received = self._clock()
                    if direction.HasField("probe"):
                        echo = pb.Echo(
                            number=direction.probe.number,
                            received_us=round(received * 1e6),
                            battery=self._battery(),
                        )
                        async with stream.writing:
                            echo.sent_us = round(self._clock() * 1e6)
                            await call.write(pb.Publication(echo=echo))
                    elif direction.HasField("grid"):
                        stream.cutter.aim(direction.grid.end_us / 1e6)
                        stream.implied = direction.grid.implied
                    elif direction.HasField("duty"):
                        stream.rest(direction.duty.rest)
        finally:
            self._streams.discard(stream)

    async def _send(self, call: Any, stream: _Stream) -> None:
        """Sends each window of a stream."""
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):  # raised where the stream is read
            while True:
                message = await self._message(await stream.take())
                stream.shorten(message, round(1e6 * self._spec.hop_s))
                async with stream.writing:
                    await call.write(pb.Publication(window=message))

    async def _message(self, window: Window) -> Any:
        """A window as a message; the battery is in the echoes."""
        message = pb.WindowFeatures(end_us=round(window.end_s * 1e6))
        if window.values is None:
            if window.reason not in self._reasons:
                _log.warning("no data in the window at %.1f s: %s", window.end_s, window.reason)
            self._reasons[window.reason] = self._reasons.get(window.reason, 0) + 1
            number: Any = 1 + NO_DATA.index(window.reason)
            message.no_data = number
            return message
        message.features = await self._features(window.values)
        message.crc32 = zlib.crc32(message.features)
        if self._raw:
            message.raw = window.values.astype("u1" if self._spec.frame else "<f4").tobytes()
        return message

    _battery_at, _battery_is = -BATTERY_S, 0

    def _battery(self) -> int:
        """The charge plus one; 0 if it is unknown."""
        now = asyncio.get_running_loop().time()
        if now - self._battery_at >= BATTERY_S:
            percent = battery_percent()
            self._battery_at, self._battery_is = now, 0 if percent is None else percent + 1
        return self._battery_is

    async def _tick(self) -> None:
        """Says "no data" for windows that end without samples."""
        # A busy machine reads its samples late, in seconds of life however fast a recording is replayed.
        grace_s = min(GRACE_S * self._clock.speed, self._spec.hop_s / 2)
        while True:
            await asyncio.sleep(min(TICK_S, self._spec.hop_s / 4) / self._clock.speed)
            for stream in tuple(self._streams):
                stream.put(stream.cutter.expire(self._clock(), grace_s))


class _Stream:
    """The windows of one stream."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter, self.writing = cutter, asyncio.Lock()  # a stream accepts one message at a time
        self.implied, self._end_us = False, 0  # the aggregator adds ends that are left out; end of the last message
        self._held: list[Window] = []
        self._rests = False
        self._wake = asyncio.Event()

    def put(self, windows: list[Window]) -> None:
        """Adds windows to send; the oldest are dropped if the link is too slow."""
        if windows and not self._rests:
            self._held = [*self._held, *windows][-HELD:]
            self._wake.set()

    def rest(self, rests: bool) -> None:
        """While a stream rests its windows are dropped; samples are kept, so that the next window has data at once."""
        self._rests = rests
        if rests:
            self._held.clear()

    def shorten(self, message: Any, hop_us: int) -> None:
        """Leaves out the end of a window that is one hop after the one before: nine of some ninety bytes."""
        expected = self._end_us + hop_us
        if self.implied and abs(message.end_us - expected) <= NEAR_US:
            message.end_us = 0
        self._end_us = message.end_us or expected

    async def take(self) -> Window:
        """The next window."""
        while not self._held:
            self._wake.clear()
            await self._wake.wait()
        return self._held.pop(0)
