"""A server of pairing in this process, machines in the middle, and devices that pair: for the tests of pairing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from nonn_device.pair import Found, Paired, pair

from nonn.aggregator.membership import pairing_server
from nonn.cli._pairing_options import _sign
from nonn.security.authority import Authority
from nonn.security.pairing import PairingCode
from nonn.security.tls import TlsFolder

CODE = PairingCode.new("ab" * 32)


def fleet(folder: Path) -> Authority:
    """An authority and the certificate of its aggregator."""
    authority = Authority.create(folder / "certs")
    authority.issue("aggregator", "main")
    return authority


@contextlib.asynccontextmanager
async def listening(
    authority: Authority, host: str = "127.0.0.1", *, announce: bool = False, **options: Any
) -> AsyncIterator[tuple[PairingCode, str]]:
    """A window of pairing; yields its code and address."""
    shown: list[tuple[PairingCode, str]] = []
    server = pairing_server_of(authority, lambda code, address, _: shown.append((code, address)), host=host, **options)
    with contextlib.nullcontext() if announce else unannounced():
        async with server.window("127.0.0.1:50051"):
            yield shown[0]


def pairing_server_of(
    authority: Authority, show: pairing_server.Show, host: str = "127.0.0.1", **options: Any
) -> pairing_server.PairingServer:
    """A server of pairing for an authority."""
    tls = authority.folder("aggregator", "main")
    return pairing_server.PairingServer(
        pairing_server.PairingOptions(host=host, **{"pace_s": 0.0, **options}),
        TlsFolder(tls),
        functools.partial(_sign, authority, tls),
        show,
    )


def unannounced() -> contextlib.AbstractContextManager[None]:
    """Without multicast DNS."""
    return _patched(pairing_server, "announced", _silent)


@contextlib.asynccontextmanager
async def _silent(host: str, port: int) -> AsyncIterator[bool]:
    yield False


@contextlib.contextmanager
def _patched(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


async def paired_at(data: Path, code: PairingCode, *addresses: str, name: str = "kitchen") -> Paired:
    """A device that pairs, in a thread."""
    return await asyncio.to_thread(pair, data, name, code, [Found("", (address,)) for address in addresses])


@contextlib.contextmanager
def in_the_middle(handle: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server whose connections a function handles, one after another; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        handle(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def pretending(tls: Path, heard: list[bytes]) -> Callable[[socket.socket], None]:
    """Shows the certificate of another authority, and notes what it is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "identity.pem")

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            heard.append(secure.recv(65536))

    return handle


def relaying(address: str, recorded: bytearray, *, lose_answers: int = 0) -> Callable[[socket.socket], None]:
    """Passes bytes on and records those of the device; can lose the first answers to its requests."""
    host, _, port = address.rpartition(":")
    left = [lose_answers]

    def handle(connection: socket.socket) -> None:
        with socket.create_connection((host, int(port))) as onward:

            def back() -> None:
                num_bytes = 0
                with contextlib.suppress(OSError):
                    while data := onward.recv(65536):
                        num_bytes += len(data)
                        if (
                            left[0] and num_bytes > 1500
                        ):  # a handshake with one certificate is shorter, an answer longer
                            left[0] -= 1
                            break
                        connection.sendall(data)
                    connection.shutdown(socket.SHUT_RDWR)

            thread = threading.Thread(target=back)
            thread.start()
            with contextlib.suppress(OSError):
                while data := connection.recv(65536):
                    recorded.extend(data)
                    onward.sendall(data)
                onward.shutdown(socket.SHUT_WR)
            thread.join()

    return handle
