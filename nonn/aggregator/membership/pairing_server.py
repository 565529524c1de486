"""The server of pairing: it listens on a separate port and announces itself, only while a code is valid.

It shows the aggregator's certificate and asks for none. One exchange is one line of JSON each way (``nonn.security.
pairing``). Neither gRPC nor aiohttp fits: a caller without a certificate must not reach the aggregator's port, and what
strangers can reach should be small. All that they can do without the code is bounded: connections in total and for each
network address, handshakes a second (each costs a signature), bytes, and the seconds of an exchange.

SIGUSR1 opens a new window with a new code.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import signal
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from nonn.aggregator.membership.announce import announced
from nonn.aggregator.membership.pairing import PairingWindow, Sign
from nonn.errors import AddressError, NonnError
from nonn.rpc.address import peer_host, resolve
from nonn.security.pairing import MAX_LINE_BYTES, PairingCode
from nonn.security.tls import TlsFolder
from nonn.telemetry.background import Background

__all__ = ["PairingOptions", "PairingServer"]

EXCHANGE_S = 10.0  # from the connection to the request
MAX_OPEN, MAX_OPEN_HOST = 16, 4
PACE_S, REFUSAL_S = 0.1, 0.005  # after a connection that is served, and after one over the limits
LINGER_S = 30.0  # after the end of a window it still answers: a lost answer again, or why the code is not accepted

Show = Callable[[PairingCode, str, float], object]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairingOptions:
    """Options of pairing.

    Attributes:
        host: address to bind.
        port: port to bind; 0 is any free one.
        devices: how many devices may use a code.
        lifetime_s: how long a code is valid.
        pace_s: time between two handshakes.
        linger_s: time after the end of a window in which requests still get an answer.
    """

    host: str
    port: int = 0
    devices: int = 1
    lifetime_s: float = 600.0
    pace_s: float = PACE_S
    linger_s: float = LINGER_S


class PairingServer:
    """Windows of pairing, one after another.

    Args:
        options: of the operator.
        tls: the aggregator's folder, whose certificate the codes name.
        sign: issues certificates, given also the aggregator's port; see ``PairingWindow``.
        show: shows the operator a new code, the address where it is valid, and its lifetime in seconds.
        hide: called when that code is no longer valid.
    """

    def __init__(
        self,
        options: PairingOptions,
        tls: TlsFolder,
        sign: Sign,
        show: Show,
        hide: Callable[[PairingCode], object] = lambda _: None,
    ) -> None:
        self._options, self._tls, self._show, self._hide = options, tls, show, hide
        self._sign = sign

    @contextlib.asynccontextmanager
    async def attend(self, address: str, end: Callable[[], None]) -> AsyncIterator[None]:
        """Opens a window, and one more at each SIGUSR1, while the block runs.

        Args:
            address: ``host:port`` of the aggregator, for the devices.
            end: not called: serving goes on without pairing.

        Raises:
            AddressError: the address of pairing cannot be bound.
        """
        asked, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, asked.set)
        try:
            async with contextlib.AsyncExitStack() as stack:
                window = await stack.enter_async_context(self.window(address))
                async with Background() as tasks:
                    tasks.start(self._keep(window, address, stack, asked), "pairing")
                    yield
        finally:
            loop.remove_signal_handler(signal.SIGUSR1)

    async def _keep(
        self, window: PairingWindow, address: str, stack: contextlib.AsyncExitStack, asked: asyncio.Event
    ) -> None:
        while True:
            try:
                await self._last(window, asked)
            finally:
                await stack.aclose()
            _log.info("pairing has ended, nothing listens for devices; SIGUSR1 prints a new code")
            await asked.wait()
            asked.clear()
            try:
                window = await stack.enter_async_context(self.window(address))
            except (NonnError, OSError) as exc:  # such as a full disk; the next SIGUSR1 tries again
                _log.error("no new code: %s", exc)

    async def _last(self, window: PairingWindow, asked: asyncio.Event) -> None:
        """Waits until a window is over, or the operator has asked for another."""
        for event, wait_s in ((window.ended, window.left_s), (asyncio.Event(), self._options.linger_s)):
            waiting = [asyncio.ensure_future(each.wait()) for each in (event, asked)]
            try:
                await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
            self._hide(window.code)
            if asked.is_set():
                return

    @contextlib.asynccontextmanager
    async def window(self, address: str) -> AsyncIterator[PairingWindow]:
        """Listens, announces and shows a new code during the block.

        Args:
            address: ``host:port`` of the aggregator, for the devices.

        Raises:
            AddressError: the address cannot be bound.
            CredentialsError: the aggregator's certificate cannot be used.
        """
        options, context = self._options, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version, context.num_tickets = ssl.TLSVersion.TLSv1_3, 0  # no session is resumed
        context.load_cert_chain(self._tls.identity_file)
        code = PairingCode.new(self._tls.fingerprint)
        port = int(address.rpartition(":")[2])
        window = PairingWindow(
            code, options.devices, options.lifetime_s, lambda *what: {**self._sign(*what), "port": port}
        )
        listener = self._bind()
        host, bound = listener.getsockname()[:2]
        where = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        try:
            async with Background() as tasks, announced(host, bound):
                tasks.start(self._accept(listener, window, context, tasks), "pairing server")
                _log.info("pairing: a code is valid for %g s, at %s", options.lifetime_s, where)
                self._show(code, where, options.lifetime_s)
                yield window
        finally:
            listener.close()
            self._hide(code)

    def _bind(self) -> socket.socket:
        host, port = self._options.host, self._options.port
        family, _, _, _, address = resolve(host)[0]
        try:
            dual = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
            listener = socket.create_server((address[0], port), family=family, backlog=MAX_OPEN, dualstack_ipv6=dual)
        except OSError as exc:
            raise AddressError(
                f"--pair-port {port}: cannot be bound at {host} ({exc.strerror}); choose another, or 0"
            ) from exc
        listener.setblocking(False)
        return listener

    async def _accept(
        self, listener: socket.socket, window: PairingWindow, context: ssl.SSLContext, tasks: Background
    ) -> None:
        """Accepts connections, as many and as fast as the limits allow."""
        open_now: Counter[str] = Counter()
        while True:
            connection, address = await asyncio.get_running_loop().sock_accept(listener)
            ip = address[0].removeprefix("::ffff:")
            peer = f"[{ip}]:{address[1]}" if ":" in ip else f"{ip}:{address[1]}"
            host = peer_host(f"ip:{peer}")
            if open_now.total() >= MAX_OPEN or open_now[host] >= MAX_OPEN_HOST:
                connection.close()
                await asyncio.sleep(min(self._options.pace_s, REFUSAL_S))
                continue
            open_now[host] += 1
            task = tasks.start(self._answer(connection, window, context, peer), "pairing")
            task.add_done_callback(functools.partial(_release, open_now, host))
            await asyncio.sleep(self._options.pace_s)

    async def _answer(
        self, connection: socket.socket, window: PairingWindow, context: ssl.SSLContext, peer: str
    ) -> None:
        """Serves one connection."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(MAX_LINE_BYTES)
        protocol, transport = asyncio.StreamReaderProtocol(reader), None
        try:
            async with asyncio.timeout(EXCHANGE_S):
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                line = await reader.readline()
            if line.endswith(b"\n"):  # otherwise it has found another certificate than its code names
                reply = await self._reply(window, line, peer)
                async with asyncio.timeout(EXCHANGE_S):
                    writer.write(json.dumps(reply).encode() + b"\n")
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (OSError, ValueError, TimeoutError):  # of the connection; an SSLError is an OSError
            pass
        finally:
            if transport is None:
                connection.close()
            else:
                transport.abort()

    async def _reply(self, window: PairingWindow, line: bytes, peer: str) -> Any:
        try:
            reply = await window.pair(line)
        except NonnError as exc:
            _log.warning("pairing refused %s: %s", peer, exc)
            return {"error": str(exc)}
        except OSError as exc:  # of the authority's folder, such as a full disk
            _log.error("pairing: no certificate for %s: %s", peer, exc)
            return {"error": f"the aggregator cannot write certificates ({exc.strerror}); the code stays valid"}
        _log.info("pairing: %s has got the certificate of node '%s'", peer, reply["id"])
        return reply


def _release(open_now: Counter[str], host: str, _: object) -> None:
    open_now[host] -= 1
    if not open_now[host]:
        del open_now[host]
