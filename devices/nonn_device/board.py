"""A student on a microcontroller behind a serial line, a TCP or a UDP port: this process is its gateway to the cluster.

The board runs ``devices/mcu/node.c``. Frames (``nonn_device.line``) of a kind each::

    H, empty, or with a key 16 random bytes  → H, the student's SHA-256 as 64 hex digits, and that of its feature code
    I, a sample as bytes                     → F, its features as 32-bit floats, or C, in the code of the bundle
    anything else                            → E, the reason as text

A reply has the number of its request, so a late reply to an earlier request is recognised and dropped. A line that is
silent, closed or gives broken frames is opened again once for each sample, and the board's student is checked again: a
reset of the board costs no request that is not due within its time. Over UDP a request is repeated until its reply
comes; the board then computes it again.

Limits: samples are bytes; one board per process, since a node has one id, one certificate and one lease; contents are
not encrypted.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import InputSpec, StudentEntry
from nonn.errors import BundleError, ConfigError, InputError, UnreachableError
from nonn.rpc.wire import Array
from nonn_device.line import KEY_BYTES, SESSION_BYTES, Line, SilentError

__all__ = ["BoardRuntime", "read_key"]

TIMEOUT_S = 10.0
DIGITS = 64  # of a SHA-256
REPEAT_S = 0.5  # first wait before a request is sent again over UDP; it doubles


def read_key(path: Path) -> bytes:
    """Reads ``--board-key``: 64 hex digits.

    Raises:
        ConfigError: the file is not that.
    """
    try:
        key = bytes.fromhex(path.read_text())
    except (OSError, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"--board-key {path}: must be 64 hex digits; make one with: openssl rand -hex 32")
    return key


class BoardRuntime:
    """The student on a board.

    Args:
        place: of the line, for example ``serial:/dev/ttyACM0``.
        student: its entry in the manifest.
        spec: its input.
        timeout_s: for one reply.
        key: of the board, for lines that others can reach; None for frames with a CRC only.

    Raises:
        ConfigError: there is no such kind of line.
        BundleError: the board runs another student, or the bundle's samples are not bytes.
        UnreachableError: no board answers.
    """

    def __init__(
        self,
        place: str,
        student: StudentEntry,
        spec: InputSpec,
        timeout_s: float = TIMEOUT_S,
        key: bytes | None = None,
    ) -> None:
        if spec.dtype != "uint8":
            raise BundleError(f"{place}: a board takes samples of bytes, the bundle's are {spec.dtype}")
        self._place, self._student, self._spec, self._timeout_s = place, student, spec, timeout_s
        self._number, self._key, self._coded = 0, key, False
        self._line: Line | None = None
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
            payload = self._ask(b"I", self._kind, sample)
        except UnreachableError:
            self._open()  # the board was reset, or the line cut
            payload = self._ask(b"I", self._kind, sample)
        size = self._student.width * (1 if self._coded else 4)
        if len(payload) != size:
            raise BundleError(f"{self.name}: {len(payload)} bytes of features, not {size}")
        if self._coded:
            decoded: NDArray[np.float32] = self._student.code.decode(np.frombuffer(payload, np.int8)[None])[0]
            return decoded
        return np.frombuffer(payload, "<f4").astype(np.float32)

    @property
    def _kind(self) -> bytes:
        """Kind of the frames with features."""
        return b"C" if self._coded else b"F"

    def _open(self) -> None:
        """Opens the line and checks which student the board runs."""
        self.close()
        session = b"" if self._key is None else secrets.token_bytes(SESSION_BYTES)
        self._line = Line(self._place, self._timeout_s, self._key, session)
        reply = self._ask(b"H", b"H", session).decode("ascii", "replace")
        made_from, code = reply[:DIGITS], reply[DIGITS:]
        if made_from != self._student.sha256:
            self.close()
            raise BundleError(
                f"{self.name}: runs the student {made_from[:12]}…, not the bundle's student {self._student.device} "
                f"({self._student.sha256[:12]}…); write that one to the board (docs/boards.md)"
            )
        self._coded = bool(code)
        if self._coded and code != self._student.code.fingerprint:
            self.close()
            raise BundleError(
                f"{self.name}: sends features in the code {code[:12]}…, not in that of the bundle's student "
                f"{self._student.device}; export the student from this bundle and write it to the board"
            )

    def _ask(self, kind: bytes, expected: bytes, payload: bytes) -> bytes:
        """Sends one request and waits for its reply; closes the line if there is none."""
        assert self._line is not None
        self._number = (self._number + 1) % (1 << 32)
        deadline = time.monotonic() + self._timeout_s
        wait_s = REPEAT_S if self._line.loses else self._timeout_s
        try:
            self._line.write(kind, self._number, payload, deadline)
            until = min(deadline, time.monotonic() + wait_s)
            while True:
                try:
                    found, number, content = self._line.read(until)
                except SilentError:
                    if time.monotonic() >= deadline or not self._line.loses:
                        raise
                    wait_s *= 2
                    until = min(deadline, time.monotonic() + wait_s)
                    self._line.write(kind, self._number, payload, deadline)
                    continue
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
