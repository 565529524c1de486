"""A node that attacks the aggregator below gRPC, with frames of HTTP/2 (RFC 9113).

Each connection of the aggregator gets the frames of another kind, again whenever bytes come from it:

============  ======================================================================================================
``goaway``    GOAWAY with an error code that RFC 9113 does not know, which "must not trigger any special behavior":
              one such frame aborts a process with grpcio 1.84 or 1.85
``reset``     RST_STREAM with such a code
``pings``     10,000 PING frames
``settings``  10,000 SETTINGS frames
``noise``     100 frames of random types, flags, streams, lengths and contents
============  ======================================================================================================
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from benchmarks import http2, slow
from benchmarks.endurance import DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.client import Client
from nonn.cluster import LocalCluster
from tests.serving import running_aggregator

__all__ = ["KINDS", "SECTIONS", "FrameNode"]

GOAWAY = 7
CODES = (*range(14, 40), 0x80, 0x4000, 2**31, 2**32 - 1)  # beyond the 14 of RFC 9113
KINDS = ("goaway", "reset", "pings", "settings", "noise")
SILENCE_S = 0.5  # without a byte, after which a connection ends
PERIOD_S = 10.0


class FrameNode:
    """A node that accepts connections and answers with frames.

    Args:
        kinds: of ``KINDS``, for one connection after another.

    Attributes:
        address: ``host:port``.
        attacks: number of connections of each kind.
    """

    def __init__(self, kinds: Sequence[str] = KINDS) -> None:
        self._kinds, self._codes = itertools.cycle(kinds), itertools.cycle(CODES)
        self.attacks = dict.fromkeys(kinds, 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="frames", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which ends accept
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                arguments = connection, next(self._kinds), next(self._codes)
                threading.Thread(target=self._attack, args=arguments, daemon=True).start()

    def _attack(self, connection: socket.socket, kind: str, code: int) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(SILENCE_S)
            connection.sendall(http2.frame(http2.SETTINGS, 0, 0))
            while connection.recv(65_536):
                for frames in _frames(kind, code):
                    connection.sendall(frames)
                self.attacks[kind] += 1


def _frames(kind: str, code: int) -> Iterator[bytes]:
    """What one connection gets when something has come from it."""
    error = code.to_bytes(4)
    if kind == "goaway":
        yield http2.frame(GOAWAY, 0, 0, bytes(4) + error)
    elif kind == "reset":
        yield b"".join(http2.frame(http2.RST_STREAM, 0, stream, error) for stream in (1, 3, 5))
    elif kind == "noise":
        rng = random.Random(code)
        for _ in range(100):
            content = rng.randbytes(rng.choice((0, 1, 4, 5, 8, 100)))
            yield http2.frame(rng.randrange(11), rng.randrange(256), rng.choice((0, 1, 3, 5)), content)
    else:
        flooding = http2.FLOODS[kind]("", b"")
        yield from itertools.islice(flooding, 100)


def _node_frames(ground: Ground) -> Figures:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn-frames-")))
        _, *others = [s.address for s in stack.enter_context(LocalCluster(ground.bundle.path)).states()]
        bad = stack.enter_context(FrameNode())
        options = ("--deadline", str(DEADLINE_S))
        ready = stack.enter_context(running_aggregator(ground.bundle.path, [bad.address, *others], folder, *options))
        client = stack.enter_context(Client(ready["address"], slow.CLIENT_DEADLINE_S))
        records = slow.period(client, ground.inputs, ground.args.concurrency, PERIOD_S)
        attacks = dict(bad.attacks)
    return {
        "node_frames_attacks": attacks,
        "node_frames_requests": len(records),
        "node_frames_failed": sum(record.answer is None for record in records),
        "node_frames_failures": reasons(records),
        "node_frames_members": sum(r.answer is not None and bool(r.answer.answered[0]) for r in records),
    }


SECTIONS = (
    Section(
        "node-frames",
        _node_frames,
        {
            "a node that attacks with frames fails no request": lambda f: f["node_frames_failed"] == 0,
            "a node that attacks with frames is in no answer": lambda f: f["node_frames_members"] == 0,
            "every kind of frames was sent": lambda f: all(f["node_frames_attacks"].values()),
        },
    ),
)
