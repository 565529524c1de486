"""The line to a board: bytes of a serial port or a TCP connection, or UDP datagrams, and the frames on it.

Frames in both directions, integers little-endian::

    mark (2 bytes)  kind (1 byte)  number (4 bytes)  length (4 bytes)  payload  tag

Without a key the mark is ``N1`` and the tag a CRC-32 of all between mark and tag. With a key of 32 bytes the mark is
``N2`` and the tag the first 16 bytes of HMAC-SHA256 (RFC 2104) over ``>`` to the board or ``<`` from it, all between
mark and tag, and the session: 16 random bytes that the gateway sends when it opens the line, so that no reply of an
earlier session is accepted. Contents are not encrypted.

A frame over UDP is one datagram.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import select
import socket
import struct
import termios
import time
import zlib

from nonn.errors import ConfigError, UnreachableError
from nonn.rpc.address import split_address

__all__ = ["BAUD", "CHOICES", "KEY_BYTES", "SESSION_BYTES", "Line", "SilentError"]

CHOICES = "serial:DEVICE[:BAUD], tcp:HOST:PORT or udp:HOST:PORT"
BAUD = 115_200  # default speed of a serial port
KEY_BYTES, SESSION_BYTES, _TAG_BYTES = 32, 16, 16
_LARGEST = 1 << 20  # of a payload; more is a broken frame
_DATAGRAM = 1 << 16


class SilentError(UnreachableError):
    """No frame came in time."""


class Line:
    """Frames with deadlines.

    Args:
        place: ``serial:/dev/ttyACM0``, ``serial:/dev/ttyACM0:BAUD``, ``tcp:HOST:PORT`` or ``udp:HOST:PORT``.
        timeout_s: to connect.
        key: shared with the board; None for a CRC instead of authentication.
        session: of this connection, if there is a key.

    Attributes:
        loses: frames may be lost, so that a request without reply is to be sent again.

    Raises:
        ConfigError: the place is none of these.
        UnreachableError: it cannot be opened.
    """

    def __init__(self, place: str, timeout_s: float, key: bytes | None = None, session: bytes = b"") -> None:
        self._place, self._key, self._session = place, key, session
        self._received = b""
        kind, _, rest = place.partition(":")
        self.loses = kind == "udp"
        self._socket: socket.socket | None = None
        try:
            if kind == "tcp":
                self._socket = socket.create_connection(split_address(rest, "--runtime tcp"), timeout_s)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            elif kind == "udp":
                host, port = split_address(rest, "--runtime udp")
                family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
                self._socket = socket.socket(family, socket.SOCK_DGRAM)
                self._socket.connect(address)  # only datagrams of this address are received
            elif kind != "serial" or not rest:
                raise ConfigError(f"--runtime {place}: write {CHOICES}")
            path, _, baud = rest.rpartition(":")
            if not baud.isdecimal():  # names in /dev/serial/by-path have colons
                path, baud = rest, str(BAUD)
            self._descriptor = self._socket.fileno() if self._socket else _open_serial(path, baud)
        except OSError as exc:
            raise UnreachableError(f"{place}: cannot be opened ({exc.strerror or exc}); is the board on?") from exc
        os.set_blocking(self._descriptor, False)

    def close(self) -> None:
        """Closes it."""
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.close()
            else:
                os.close(self._descriptor)

    def write(self, kind: bytes, number: int, payload: bytes, deadline: float) -> None:
        """Sends one frame.

        Raises:
            UnreachableError: the line does not take it in time.
        """
        body = kind + struct.pack("<II", number, len(payload)) + payload
        data = self._mark + body + self._tag(b">", body)
        while data:
            self._wait(deadline, writes=True)
            data = data[os.write(self._descriptor, data) :]

    def read(self, deadline: float) -> tuple[bytes, int, bytes]:
        """The next whole frame: kind, number and payload. What lies before its mark is dropped.

        Raises:
            SilentError: there is none in time.
            UnreachableError: the line was closed, or the frame is broken.
        """
        mark = b""
        while mark != self._mark:
            mark = (mark + self._read(1, deadline))[-2:]
        head = self._read(9, deadline)
        number, length = struct.unpack("<II", head[1:])
        if length <= _LARGEST:
            body = head + self._read(length, deadline)
            tag = self._tag(b"<", body)
            if hmac.compare_digest(self._read(len(tag), deadline), tag):
                return head[:1], number, body[9:]
        reason = "check cable and baud rate" if self._key is None else "has it the key of --board-key?"
        raise UnreachableError(f"board at {self._place}: a broken frame; {reason}")

    @property
    def _mark(self) -> bytes:
        return b"N1" if self._key is None else b"N2"

    def _tag(self, direction: bytes, body: bytes) -> bytes:
        """What ends a frame."""
        if self._key is None:
            return struct.pack("<I", zlib.crc32(body))
        return hmac.digest(self._key, direction + body + self._session, "sha256")[:_TAG_BYTES]

    def _read(self, count: int, deadline: float) -> bytes:
        while len(self._received) < count:
            self._wait(deadline)
            more = os.read(self._descriptor, _DATAGRAM)
            if not more and not self.loses:
                raise UnreachableError(f"board at {self._place}: the line was closed; is the board on?")
            self._received += more
        data, self._received = self._received[:count], self._received[count:]
        return data

    def _wait(self, deadline: float, *, writes: bool = False) -> None:
        left = max(0.0, deadline - time.monotonic())
        waiting = [self._descriptor]
        if not any(select.select([] if writes else waiting, waiting if writes else [], [], left)):
            key = "" if self._key is None else ", with the key of --board-key"
            raise SilentError(
                f"board at {self._place}: no answer in time; is the board on, and the student on it{key}?"
            )


def _open_serial(path: str, baud: str) -> int:
    """Opens a serial line, raw, and drops what it has received."""
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise ConfigError(f"--runtime serial:{path}:{baud}: not a baud rate of this system")
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        settings = termios.tcgetattr(descriptor)
        settings[0] = settings[1] = settings[3] = 0
        settings[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
        settings[4] = settings[5] = speed
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
        termios.tcflush(descriptor, termios.TCIOFLUSH)
    except termios.error as exc:
        os.close(descriptor)
        raise ConfigError(f"--runtime serial:{path}: not a serial line ({exc})") from exc
    return descriptor
