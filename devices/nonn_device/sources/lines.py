"""``-`` and ``serial:PORT``: lines of numbers, from standard input or a serial port.

A line has the channels in the order of the bundle, with commas or spaces, or in that of a header line. A first column
of time may be there: the sensor's clock, whose offset is taken from the line that took least time to arrive within the
last minute. Without it a sample has the time of its arrival. A line that cannot be read is a sample of NaN, so its
window has no data; the first one that cannot be read is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
import termios
import tty
from collections.abc import AsyncIterator
from math import inf, nan
from typing import Any

import numpy as np

from nonn.errors import ConfigError, DataError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn.sensing.columns import Columns, is_header
from nonn_device.line import BAUD
from nonn_device.sources import Samples, SampleSource, SourceOptions

__all__ = ["Parser", "SensorTime", "open_source"]

AGAIN_S = 1.0  # until a port that has gone is opened again
MINUTE_S = 60.0
MAX_LINE = 65536  # bytes

_log = logging.getLogger(__name__)


class SensorTime:
    """A sensor's own times on the node's clock.

    The least difference of arrival and time within the last minute or two is the time on the way; the sensor's clock
    may drift meanwhile by some milliseconds. After a time that goes backwards, as that of a sensor that has started
    again, it begins anew.
    """

    def __init__(self) -> None:
        self._now, self._before, self._since, self._last = inf, inf, -inf, -inf

    def on_node(self, stamp_s: float, arrived_s: float) -> float:
        """The node's time of a sample that has the sensor's time ``stamp_s`` and arrives now."""
        if stamp_s < self._last:
            self._now, self._before, self._since = inf, inf, arrived_s
        difference, self._last = arrived_s - stamp_s, stamp_s
        if arrived_s - self._since > MINUTE_S:
            self._now, self._before, self._since = inf, self._now, arrived_s
        self._now = min(self._now, difference)
        return stamp_s + min(self._now, self._before)


class Parser:
    """Reads lines."""

    def __init__(self, spec: SensingSpec, clock: DataClock, what: str) -> None:
        self._spec, self._clock, self._what = spec, clock, what
        self._columns: Columns | None = None
        self._time, self._bad = SensorTime(), False

    def read(self, line: bytes) -> Samples | None:
        """The sample of a line; None if it has none, as a header.

        Raises:
            DataError, ConfigError: the number of values, or a header, does not fit the unit.
        """
        arrived, cells = self._clock(), re.split(r"[,;\s]+", line.decode(errors="replace").strip().strip(",;"))
        if cells == [""] or cells[0].startswith("#"):
            return None
        if is_header(cells) and self._columns is None:
            # A header has units in brackets, which may contain spaces.
            names = re.split(r"[,;]", line.decode(errors="replace").strip())
            self._columns = Columns.named(names if len(names) > 1 else cells, self._spec, self._what)
            return None
        if self._columns is None:
            self._columns = Columns.unnamed(len(cells), self._spec, self._what)
        try:
            stamp, values = self._columns.read(cells)
        except (ValueError, IndexError):
            if not self._bad:
                _log.warning("%s: cannot be read: %.80r; such lines are samples without values", self._what, line)
            self._bad, stamp, values = True, None, [nan] * len(self._spec.channels)
        at = arrived if stamp is None else self._time.on_node(stamp, arrived)
        return Samples(np.array([at]), np.array([values]))


def open_source(options: SourceOptions, spec: SensingSpec, clock: DataClock) -> SampleSource:
    """Opens standard input or a serial port.

    Raises:
        DataError: the port does not exist, or is not one.
        ConfigError: it cannot have this speed.
    """
    if options.kind == "-":
        return lambda: _standard_input(Parser(spec, clock, "standard input"))
    baud = int(options.options.get("baud", BAUD))
    os.close(_open_port(options.where, baud))
    return lambda: _port(options.where, baud, Parser(spec, clock, options.where))


async def _standard_input(parser: Parser) -> AsyncIterator[Samples]:
    """Samples until standard input ends."""
    reader = asyncio.StreamReader(limit=MAX_LINE)
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    except ValueError as exc:  # a file
        raise DataError("standard input is a file, not a pipe; use --source csv:FILE, or cat FILE | …") from exc
    async for samples in _lines(reader, parser):
        yield samples


async def _port(path: str, baud: int, parser: Parser) -> AsyncIterator[Samples]:
    """Samples for ever; a port that has gone is opened again."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(DataError):
            descriptor = _open_port(path, baud)
            reader = asyncio.StreamReader(limit=MAX_LINE)
            loop.add_reader(descriptor, _feed, descriptor, reader, loop)
            try:
                async for samples in _lines(reader, parser):
                    yield samples
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            _log.warning("%s has gone; it is opened again when it is back", path)
        await asyncio.sleep(AGAIN_S)


async def _lines(reader: asyncio.StreamReader, parser: Parser) -> AsyncIterator[Samples]:
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            line = await reader.read(MAX_LINE)
        if (samples := parser.read(line)) is not None:
            yield samples


def _feed(descriptor: int, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
    """Passes what has arrived on."""
    try:
        data = os.read(descriptor, 4096)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    if data:
        reader.feed_data(data)
    else:
        loop.remove_reader(descriptor)
        reader.feed_eof()


def _open_port(path: str, baud: int) -> int:
    """Opens a port without waiting for a modem, and sets it to raw bytes at a speed."""
    speed: Any = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise ConfigError(f"--source serial:{path}?baud={baud}: no usual speed of a serial port; 115200 is one")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as exc:
        raise DataError(
            f"{path}: cannot be opened ({exc.strerror}); ls /dev/serial/by-id lists ports, and the user must be in the "
            "group dialout"
        ) from exc
    try:
        tty.setraw(descriptor, termios.TCSANOW)  # keeps what has arrived
        settings = termios.tcgetattr(descriptor)
        settings[4] = settings[5] = speed
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
    except termios.error as exc:
        os.close(descriptor)
        raise DataError(f"{path}: not a serial port ({exc})") from exc
    return descriptor
