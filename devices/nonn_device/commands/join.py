"""``nonn-device join``: gets a student from an aggregator and serves it; another one when the aggregator assigns it.

Without a certificate or a token the device pairs first; with ``--source`` it measures windows itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nonn.arguments import is_missing, usage
from nonn.bundle import Bundle
from nonn.errors import UsageError
from nonn.rpc.address import check_bind, split_address, split_addresses, with_port
from nonn.rpc.guard import Tokens
from nonn.rpc.loop import run as run_loop
from nonn.rpc.server import Attend, serve, shutdown_event
from nonn.security.tls import TlsFolder, check_id, load_tls
from nonn.telemetry.background import Background
from nonn.telemetry.systemd import Watchdog
from nonn_device.artifacts import Store
from nonn_device.commands.serve import LOOPBACK, endpoint_of, model_of, server_options, warn_of_memory
from nonn_device.join import JoinOptions, Member
from nonn_device.link import AggregatorLink
from nonn_device.node import StudentModel

if TYPE_CHECKING:
    from nonn_device.publish import Sensor

__all__ = ["run"]

_Result = TypeVar("_Result")


def run(arguments: argparse.Namespace) -> int:
    """Gets a student and serves it; gets another one when an aggregator assigns it."""
    if arguments.dial_out and (arguments.host not in (None, LOOPBACK) or arguments.advertise):
        raise UsageError("--dial-out is for a node without a reachable address: omit --host and --advertise")
    if arguments.may_pair:
        from nonn_device.pairing_options import use_pairing

        use_pairing(arguments)
    elif arguments.code is not None or arguments.pair_with is not None:
        raise UsageError("--code and --pair-with get a certificate: leave out --tls and --join-token-file")
    elif not arguments.aggregators:
        raise UsageError("AGGREGATOR is missing: give its host:port")
    arguments.host = LOOPBACK if arguments.host is None else arguments.host
    tls = load_tls(arguments.tls, "node")
    name = _own_id(arguments.id, tls)
    aggregators = split_addresses(",".join(arguments.aggregators), "aggregator")
    check_bind(arguments.host, arguments.port)
    warn_of_memory()
    if arguments.advertise:
        with usage():
            split_address(with_port(arguments.advertise, "1"), "--advertise")
    _check_source(arguments)
    token = Tokens(arguments.join_token_file) if arguments.join_token_file else None
    if token is not None:
        for address in aggregators:
            token.check_link(address, tls, insecure=arguments.insecure)
    options = JoinOptions(
        node=name,
        student=arguments.student,
        advertise=arguments.advertise,
        max_model_bytes=arguments.max_model_bytes,
        dials_out=arguments.dial_out,
    )
    links = [AggregatorLink(address, tls, token) for address in aggregators]
    member = Member(options, links, Store(arguments.data))
    # A node that senses wakes up once per window: uvloop would save nothing, and takes 2 MB.
    (asyncio.run if arguments.source else run_loop)(_run_member(arguments, member))
    if member.failure is not None:
        raise member.failure
    return 0


def _check_source(arguments: argparse.Namespace) -> None:
    """Checks the options of a node that senses.

    Raises:
        UsageError: an option is missing, is wrong, or two exclude each other.
    """
    if arguments.source is None:
        if arguments.send_raw:
            raise UsageError("--send-raw sends what --source measures; give a --source, or leave it out")
        return
    from nonn_device.sources import check_source, parse_source

    with usage():
        arguments.parsed = parse_source(arguments.source)
        check_source(arguments.parsed)
    if arguments.parsed.kind in ("csv", "video") and is_missing(Path(arguments.parsed.where)):
        raise UsageError(f"--source {arguments.source}: {arguments.parsed.where}: no such file")
    if arguments.student is None:
        raise UsageError("--source needs --student: units measure different channels, and this is one of them")
    if arguments.parsed.kind == "-" and arguments.watch_stdin:
        raise UsageError("--source - reads standard input; leave --watch-stdin out: the node ends with its source")
    if arguments.send_raw and not arguments.tls:
        raise UsageError(
            "--send-raw: refusing to send raw samples in plain text, where anyone on the network path can read them; "
            "use --tls with a folder of nonn certs"
        )


def _sensor(arguments: argparse.Namespace, bundle: Bundle, device: int, model: StudentModel) -> Sensor | None:
    """The sensor of a node that senses; None without ``--source``."""
    if arguments.source is None:
        return None
    from nonn_device.publish import Sensor
    from nonn_device.sources import open_source

    spec, clock = bundle.sensing_of(device), arguments.parsed.clock()
    source = open_source(arguments.parsed, spec, clock)
    return Sensor(spec, source, clock, model.features, raw=arguments.send_raw)


def _own_id(given: str | None, tls: TlsFolder | None) -> str:
    """The id of this device, from its certificate or the operator.

    Raises:
        UsageError: there is neither, it is not a valid id, or the two differ.
    """
    if tls is not None:
        if given not in (None, tls.identity.id):
            raise UsageError(f"--id {given}: the certificate in {tls.path} is of {tls.identity}; omit --id")
        return tls.identity.id
    if not given:
        raise UsageError("--id is missing: without TLS nothing else identifies this device")
    with usage():
        return check_id(given)


async def _run_member(arguments: argparse.Namespace, member: Member) -> None:
    """Prepares and serves until shutdown."""
    shutdown = shutdown_event(arguments.watch_stdin)

    async def relay(stop: asyncio.Event) -> None:
        await shutdown.wait()
        stop.set()

    async with Watchdog() as watchdog:
        try:
            while not shutdown.is_set() and member.failure is None:
                # The process has started, even if no aggregator answers yet: it waits without a limit.
                watchdog.ready("asks for a student")
                prepared = await _unless(shutdown, member.prepare())
                if prepared is None:
                    break
                bundle, device = prepared
                model, stop = model_of(arguments, bundle, device, member.node), asyncio.Event()
                sensor = _sensor(arguments, bundle, device, model)
                attend = _attend(watchdog, member, model, f"student {device} of bundle {bundle.hash[:12]}", sensor)
                endpoint = endpoint_of(arguments, model)
                options = server_options(arguments, bundle, device, endpoint, attend=attend, stop=stop)
                async with Background() as tasks:
                    # The server has a separate event, since it also ends when the next student replaces it.
                    tasks.start(relay(stop), "shutdown")
                    await serve(endpoint, **options)
                if not member.moved:
                    break
        finally:
            await member.close()


async def _unless(event: asyncio.Event, coroutine: Coroutine[Any, Any, _Result]) -> _Result | None:
    """Result of a coroutine; None if the event is set first, which cancels it."""
    waiting, working = asyncio.ensure_future(event.wait()), asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait((waiting, working), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        waiting.cancel()
        working.cancel()
        await asyncio.gather(waiting, working, return_exceptions=True)


def _attend(watchdog: Watchdog, member: Member, model: StudentModel, status: str, sensor: Sensor | None) -> Attend:
    """The context manager that keeps a joined node registered while it serves."""

    @contextlib.asynccontextmanager
    async def attend(address: str, end: Callable[[], None]) -> AsyncIterator[None]:
        runtime = model.metadata().properties["nonn_runtime"]
        joined = member.attend(address, end, runtime=runtime, sensor=sensor)
        async with watchdog.over(model.check, status), joined:
            yield

    return attend
