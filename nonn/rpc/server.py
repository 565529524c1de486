"""The server process of device nodes and the aggregator: one model with the Open Inference Protocol.

It has one bound port, ``grpc.health.v1`` and a graceful shutdown: on SIGTERM, SIGINT or, optionally, when standard
input closes, the health status becomes NOT_SERVING, new requests are refused, requests in flight are answered, and the
process exits. Watching standard input tells a child that its parent was killed: SIGKILL cannot be caught, but the pipe
closes.

An address beyond loopback is refused without TLS, unless the operator gives ``--insecure``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from nonn.errors import AddressError, UsageError
from nonn.rpc.address import is_loopback
from nonn.rpc.connections import LIMITS, PEER_SHARE, PeerLimit, raise_descriptor_limit
from nonn.rpc.endpoint import Endpoint, Model
from nonn.rpc.guard import Guard
from nonn.rpc.inference import InferenceServicer
from nonn.rpc.reflection import add_reflection
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import MAX_MESSAGE_BYTES, MAX_STREAMS, SERVICE
from nonn.security.tls import TlsFolder
from nonn.telemetry.background import Background

__all__ = ["Attend", "serve", "shutdown_event"]

Attend = Callable[[str, Callable[[], None]], contextlib.AbstractAsyncContextManager[object]]
DRAIN_S = 10.0  # for requests in flight at shutdown; a request's own deadline is shorter
STOP_GRACE_S = 1.0  # for other open calls at shutdown, such as a watch of health

_OPTIONS = (
    *LIMITS,
    # With SO_REUSEPORT, a second process on the same port would silently get half of the requests.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Clients ping idle links every 10 s; a stricter server would answer GOAWAY too_many_pings (flower #4519).
    ("grpc.keepalive_permit_without_calls", 1),
    # Without a limit, four connections that open and cancel streams as fast as they can (rapid reset, CVE-2023-44487)
    # make the server cancel nearly all calls of other clients.
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # A caller that has lost its power or network leaves no stream behind; a nonn client pings more often itself.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
)


async def serve(
    endpoint: Endpoint,
    *,
    host: str,
    port: int,
    insecure: bool,
    watch_stdin: bool,
    on_ready: Callable[[str], None],
    reflection: bool = False,
    guard: Guard | None = None,
    services: Sequence[Callable[[Any], FileDescriptor]] = (),
    attend: Attend | None = None,
    interceptors: Sequence[aio.ServerInterceptor] = (),
    stop: asyncio.Event | None = None,
) -> None:
    """Serves a model until a signal, ``stop`` or the end of standard input.

    Args:
        endpoint: the model to serve, with its limits; it is opened when the server answers requests.
        host: address to bind; beyond loopback only with TLS or ``insecure``.
        port: 0 lets the system choose.
        insecure: the operator accepts serving without TLS.
        watch_stdin: shut down when standard input closes.
        on_ready: called once with ``host:port`` when the server answers requests.
        reflection: enable server reflection.
        guard: authorises calls; with a TLS folder the port accepts TLS only.
        services: each adds a further service to the server, which has not been started, and returns the descriptor of
            its .proto file.
        attend: context manager to run during serving. Called with the address and a function that ends the server;
            entered when the server answers requests, exited at shutdown while it still answers.
        stop: ends the server when it is set; None for a new ``shutdown_event``.
        interceptors: further interceptors, after the guard.

    Raises:
        AddressError: the address is taken, or not of this machine.
        UsageError: the address is beyond loopback, without TLS and without ``insecure``.
        NonnError: raised by ``attend``.
        MissingExtraError: reflection is enabled but not installed.
    """
    if stop is None:
        stop = shutdown_event(watch_stdin)
    model = endpoint.model
    options = (*_OPTIONS, ("grpc.max_receive_message_length", model.max_request_bytes))
    server = aio.server(interceptors=[*([guard] if guard else []), *interceptors], options=options)
    InferenceServicer(endpoint, guard).add_to(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    files = [pb.DESCRIPTOR, health_pb2.DESCRIPTOR, *(add_service(server) for add_service in services)]
    if reflection:
        add_reflection(server, files)
    descriptors = raise_descriptor_limit()
    address = _bind(server, host, port, insecure, guard.tls if guard else None)
    peers = PeerLimit(int(address.rpartition(":")[2]), descriptors // PEER_SHARE)
    async with model:
        await server.start()
        endpoint.opened = True
        try:
            async with Background(stop.set) as tasks:
                tasks.start(_follow(model, health_servicer), "health")
                tasks.start(peers.keep(), "limit of connections")
                on_ready(address)
                async with attend(address, stop.set) if attend else contextlib.nullcontext():
                    await stop.wait()
        finally:
            await health_servicer.enter_graceful_shutdown()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await endpoint.drain()
            await server.stop(STOP_GRACE_S)


def shutdown_event(watch_stdin: bool) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on, and optionally the end of standard input."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if watch_stdin:
        threading.Thread(target=_wait_for_eof, args=(loop, stop), name="watch-stdin", daemon=True).start()
    return stop


async def _follow(model: Model, health_servicer: Any) -> None:
    """Keeps grpc.health.v1 equal to the model's readiness."""
    async for ready in model.readiness():
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await health_servicer.set(service, status)


def _bind(server: Any, host: str, port: int, insecure: bool, tls: TlsFolder | None) -> str:
    """Binds the server and returns ``host:port``."""
    if tls is None and not insecure and not is_loopback(host):
        raise UsageError(
            f"{host}: refusing to serve beyond loopback without TLS; give a folder of nonn certs with --tls, "
            "bind 127.0.0.1, or give --insecure on a network that you trust"
        )
    if not 0 <= port < 65536:  # gRPC would take it modulo 65536
        raise AddressError(f"port {port}: must be 1 to 65535, or 0 for any free port")
    name = f"[{host}]" if ":" in host else host
    try:
        if tls is None:
            bound = server.add_insecure_port(f"{name}:{port}")
        else:
            bound = server.add_secure_port(f"{name}:{port}", tls.server_credentials())
    except RuntimeError as exc:
        raise AddressError(
            f"{name}:{port} cannot be bound: port {port} is in use, or {host} is not an address of this machine; "
            "choose another --port, or 0 for any"
        ) from exc
    return f"{name}:{bound}"


def _wait_for_eof(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Reads standard input until it closes; with os.read, since sys.stdin would hold a lock that the exit needs."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is already closed
        loop.call_soon_threadsafe(stop.set)
