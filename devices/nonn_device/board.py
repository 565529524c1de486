"""A student on a microcontroller behind a serial line or a TCP port: this process is its gateway to the cluster.

The board runs ``devices/mcu/node.c``. Frames in both directions, integers little-endian::

    "N1"  kind (1 byte)  number (4 bytes)  length (4 bytes)  payload  CRC-32 of all since kind (4 bytes)

    H, empty             → H, the student's SHA-256 as 64 hex digits
    I, a sample as bytes → F, its features as 32-bit floats
    anything else        → E, the reason as text

A reply has the number of its request, so a late reply to an earlier request is recognised and dropped. A line that is
silent, closed or gives broken frames is opened again once for each sample, and the board's student is checked again: a
reset of the board costs no request that is not due within its time.

Limits: samples are bytes; one board per gateway; frames are not authenticated, so a TCP port beyond this machine needs
``--insecure`` and a network that is trusted.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import termios
import time
import zlib

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import InputSpec, Student
from nonn.errors import BundleError, ConfigError, InputError, UnreachableError
from nonn.rpc.address import split_address
from nonn.rpc.wire import Array

__all__ = ["BoardRuntime"]

BAUD = 115_200
TIMEOUT_S = 10.0
_LARGEST = 1 << 20  # of a payload; more is a broken frame


class BoardRuntime:
    """The student on a board.

    Args:
        place: ``serial:/dev/ttyACM0``, ``serial:/dev/ttyACM0:BAUD`` or ``tcp:HOST:PORT``.
        student: its entry in the manifest.
        spec: its input.
        timeout_s: for one reply.

    Raises:
        ConfigError: the place is neither.
        BundleError: the board runs another student, or the bundle's samples are not bytes.
        UnreachableError: no board answers.
    """

    def __init__(self, place: str, student: Student, spec: InputSpec, timeout_s: float = TIMEOUT_S) -> None:
        if spec.dtype != "uint8":
            raise BundleError(f"{place}: a board takes samples of bytes, the bundle's are {spec.dtype}")
        self._place, self._student, self._spec, self._timeout_s = place, student, spec, timeout_s
        self._number = 0
        self._line: _Line | None = None
        self._open()

    @property
    def name(self) -> str:
        """Where the board is."""
        return f"board at {self._place}"

    def run(self, batch: Array) -> NDArray[np.float32]:
        """Raw inputs [B, …], whole values 0 to 255 → features [B, d_i].

        Raises:
            InputError: a value is not a byte.
            UnreachableError: the board does not answer, also after the line was opened again.
        """
        samples = batch.astype(np.uint8)
        if (samples != batch).any():
            raise InputError(f"{self.name}: takes whole values from 0 to 255")
        return np.stack([self._features(sample.tobytes()) for sample in samples])

    def close(self) -> None:
        """Closes the line."""
        if self._line is not None:
            self._line.close()
        self._line = None

    def _features(self, sample: bytes) -> NDArray[np.float32]:
        try:
            if self._line is None:
                self._open()
            payload = self._ask(b"I", b"F", sample)
        except UnreachableError:
            self._open()  # the board was reset, or the line cut
            payload = self._ask(b"I", b"F", sample)
        if len(payload) != 4 * self._student.width:
            raise BundleError(f"{self.name}: {len(payload)} bytes of features, not {4 * self._student.width}")
        return np.frombuffer(payload, "<f4").astype(np.float32)

    def _open(self) -> None:
        """Opens the line and checks which student the board runs."""
        self.close()
        self._line = _Line(self._place, self._timeout_s)
        made_from = self._ask(b"H", b"H", b"").decode("ascii", "replace")
        if made_from != self._student.sha256:
            self.close()
            raise BundleError(
                f"{self.name}: runs the student {made_from[:12]}…, not the bundle's student {self._student.device} "
                f"({self._student.sha256[:12]}…); write that one to the board (docs/devices.md)"
            )

    def _ask(self, kind: bytes, expected: bytes, payload: bytes) -> bytes:
        """Sends one request and waits for its reply; closes the line if there is none."""
        assert self._line is not None
        self._number = (self._number + 1) % (1 << 32)
        body = kind + struct.pack("<II", self._number, len(payload)) + payload
        deadline = time.monotonic() + self._timeout_s
        try:
            self._line.write(b"N1" + body + struct.pack("<I", zlib.crc32(body)), deadline)
            while True:
                found, number, content = self._line.frame(deadline)
                if number != self._number:
                    continue  # a late reply to an earlier request
                if found != expected:
                    raise UnreachableError(f"{self.name}: refuses a frame: {content.decode('ascii', 'replace')}")
                return content
        except UnreachableError:
            self.close()
            raise
        except OSError as exc:
            self.close()
            raise UnreachableError(f"{self.name}: the line is cut ({exc}); is the board on?") from exc


class _Line:
    """A byte stream with deadlines."""

    def __init__(self, place: str, timeout_s: float) -> None:
        self._place = place
        kind, _, rest = place.partition(":")
        self._socket: socket.socket | None = None
        try:
            if kind == "tcp":
                host, port = split_address(rest, "--runtime tcp")
                self._socket = socket.create_connection((host, port), timeout_s)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._descriptor = self._socket.fileno()
            elif kind == "serial" and rest:
                path, _, baud = rest.partition(":")
                self._descriptor = _open_serial(path, baud or str(BAUD))
            else:
                raise ConfigError(f"--runtime {place}: write serial:/dev/ttyACM0 or tcp:HOST:PORT")
        except OSError as exc:
            raise UnreachableError(f"{place}: cannot be opened ({exc.strerror or exc}); is the board on?") from exc
        os.set_blocking(self._descriptor, False)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.close()
            else:
                os.close(self._descriptor)

    def write(self, data: bytes, deadline: float) -> None:
        while data:
            self._wait(deadline, writes=True)
            data = data[os.write(self._descriptor, data) :]

    def frame(self, deadline: float) -> tuple[bytes, int, bytes]:
        """The next whole frame: kind, number and payload. What lies before its mark is dropped."""
        mark = b""
        while mark != b"N1":
            mark = (mark + self._read(1, deadline))[-2:]
        head = self._read(9, deadline)
        number, length = struct.unpack("<II", head[1:])
        payload = self._read(length, deadline) if length <= _LARGEST else b""
        if length > _LARGEST or zlib.crc32(head + payload) != struct.unpack("<I", self._read(4, deadline))[0]:
            raise UnreachableError(f"board at {self._place}: a broken frame; check cable and baud rate")
        return head[:1], number, payload

    def _read(self, count: int, deadline: float) -> bytes:
        data = b""
        while len(data) < count:
            self._wait(deadline)
            more = os.read(self._descriptor, count - len(data))
            if not more:
                raise UnreachableError(f"board at {self._place}: the line was closed; is the board on?")
            data += more
        return data

    def _wait(self, deadline: float, *, writes: bool = False) -> None:
        left = max(0.0, deadline - time.monotonic())
        waiting = [self._descriptor]
        if not any(select.select([] if writes else waiting, waiting if writes else [], [], left)):
            raise UnreachableError(
                f"board at {self._place}: no answer in time; is the board on, and the student on it?"
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
