"""``nonn-device``: the process on a device.

Exit codes: 0 shut down on request, 2 usage, 3 bundle, address or certificate, or refused by the aggregator. When ready
for requests, ``serve`` and ``join`` print one line of JSON on standard output and nothing else; logs go to standard
error.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nonn import __version__
from nonn.arguments import addresses, count, existing, is_missing, path, port, usage, whole
from nonn.commandline import run_command
from nonn.errors import UsageError
from nonn.telemetry.log import add_log_arguments, configure_logging

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Coroutine

    from nonn.bundle import Bundle
    from nonn.rpc.endpoint import Endpoint
    from nonn.rpc.server import Attend
    from nonn.security.tls import TlsFolder
    from nonn.telemetry.systemd import Watchdog
    from nonn_device.join import Member
    from nonn_device.node import StudentModel
    from nonn_device.publish import Sensor

__all__ = ["build_parser", "main"]

_Result = TypeVar("_Result")

_LOOPBACK = "127.0.0.1"
_student = whole(0, 2**31 - 1)  # as the protocol has it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run_command(build_parser(), argv)


def _prepared(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A command that first sets up the process: threads, logs, traces."""

    def run(arguments: argparse.Namespace) -> int:
        # A node multiplies nothing in NumPy: threads of its BLAS would only cost memory.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        if arguments.tls or _may_pair(arguments):
            from nonn.security.handshake import log_failed_handshakes

            log_failed_handshakes()
        configure_logging(arguments.log_format)
        arguments.tracing = None
        if arguments.trace:
            from nonn.telemetry.tracing import Tracing

            arguments.tracing = Tracing.to(arguments.trace, "nonn-device", "nonn.infer", begins=False)
        return command(arguments)

    return run


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``nonn-device``."""
    parser = argparse.ArgumentParser(prog="nonn-device", description="One student of a bundle on this device.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a student until shutdown")
    serve.set_defaults(run=_prepared(_serve))
    join = commands.add_parser("join", help="get a student from an aggregator, and serve it until shutdown")
    _add_join_options(join)
    join.set_defaults(run=_prepared(_join))
    check = commands.add_parser("check", help="run a student in a separate process, and print its time and memory")
    check.set_defaults(run=_prepared(_check), tls=None, trace=None, log_format="text")
    for command in (serve, check):
        command.add_argument(
            "bundle", type=existing, metavar="BUNDLE", help="folder with manifest.json and this student's file"
        )
        command.add_argument(
            "--student", type=_student, required=True, metavar="I", help="number of the student in the bundle"
        )
    for command in (serve, join):
        _add_serving_options(command)
    for command in (serve, join, check):
        _add_runtime_options(command)
    return parser


def _add_join_options(parser: argparse.ArgumentParser) -> None:
    """Options of a node that joins."""
    parser.add_argument(
        "aggregators",
        type=addresses,
        nargs="*",
        metavar="AGGREGATOR",
        help="host:port; the node joins each one (default: the one that the device is paired with)",
    )
    parser.add_argument("--id", metavar="ID", help="id of this device (default with --tls: that of the certificate)")
    parser.add_argument("--data", type=path, required=True, metavar="DIR", help="folder for the student's files")
    parser.add_argument(
        "--code",
        metavar="CODE",
        help="code that nonn serve --pair shows; - reads it from standard input, as nothing hides it on a command line "
        "(default: NONN_CODE, or ask)",
    )
    parser.add_argument(
        "--pair-with",
        type=addresses,
        metavar="HOST:PORT",
        help="address that nonn serve --pair shows (default: found by multicast DNS)",
    )
    parser.add_argument("--student", type=_student, metavar="I", help="student to run (default: the cluster chooses)")
    parser.add_argument("--advertise", default="", metavar="HOST[:PORT]", help="address for connections to this node")
    parser.add_argument("--dial-out", action="store_true", help="for a node behind NAT: receive requests over a stream")
    parser.add_argument(
        "--max-model-bytes", type=whole(0, 2**63 - 1), default=0, metavar="B", help="largest student that fits"
    )
    parser.add_argument("--join-token-file", type=existing, metavar="FILE", help="token for joining without TLS")
    parser.add_argument(
        "--source",
        metavar="KIND:WHERE",
        help="measure windows here and send their features: csv:FILE, iio:DEVICE, serial:PORT, - (standard input), or "
        "package.module:factory",
    )
    parser.add_argument("--send-raw", action="store_true", help="send raw samples too, for debugging; needs --tls")


def _add_serving_options(parser: argparse.ArgumentParser) -> None:
    """Options of every node, wherever its student comes from."""
    parser.add_argument(
        "--host", help="address to bind (default: 127.0.0.1; a paired node binds all addresses of this machine)"
    )
    parser.add_argument("--port", type=port, default=0, help="port to bind; 0, the default, chooses a free one")
    parser.add_argument(
        "--threads", type=whole(1, 256), default=1, help="threads of one inference (default: %(default)s)"
    )
    parser.add_argument(
        "--max-batch", type=count, default=1024, metavar="B", help="samples of one request (default: %(default)s)"
    )
    parser.add_argument(
        "--max-queue", type=count, default=64, metavar="N", help="requests that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--memory",
        type=whole(0, 2**31 - 1),
        default=0,
        metavar="MB",
        help="memory limit of the node; it limits the batch size",
    )
    parser.add_argument(
        "--board-key", type=existing, metavar="FILE", help="key that authenticates the frames of a board: 64 hex digits"
    )
    parser.add_argument("--self-test", action="store_true", help="run the student in a separate process first")
    parser.add_argument("--tls", type=existing, metavar="DIR", help="this node's TLS folder; serves TLS only")
    parser.add_argument("--insecure", action="store_true", help="serve, and send a token, beyond loopback without TLS")
    parser.add_argument("--reflection", action="store_true", help="enable gRPC server reflection")
    parser.add_argument("--watch-stdin", action="store_true", help="shut down when standard input closes")
    add_log_arguments(parser)


def _add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Options of the runtime."""
    parser.add_argument(
        "--runtime",
        type=_runtime,
        default="onnx",
        metavar="{onnx,c,serial:DEVICE,tcp:HOST:PORT,udp:HOST:PORT}",
        help="ONNX Runtime, compiled C, or a board behind a line (default: %(default)s)",
    )
    parser.add_argument(
        "--library", type=existing, metavar="FILE", help="compiled student (default: the path that nonn export uses)"
    )


def _runtime(text: str) -> str:
    """A value of ``--runtime``."""
    if text not in ("onnx", "c") and not text.startswith(("serial:", "tcp:", "udp:")):
        from nonn_device.line import CHOICES

        raise argparse.ArgumentTypeError(f"invalid choice: '{text}' (choose onnx, c, {CHOICES})")
    return text


# The functions below import late, so that --help and wrong options do not wait for NumPy, gRPC and ONNX Runtime.


def _model(arguments: argparse.Namespace, bundle: Bundle, device: int, node: str = "") -> StudentModel:
    """A student of a bundle, ready to run; ``node`` is the id of a device that joins."""
    from nonn_device.node import StudentModel
    from nonn_device.runtime import batch_within, open_runtime

    key = _board_key(arguments)
    if arguments.self_test:
        from nonn_device.self_test import self_test

        self_test(bundle.path, device, arguments.runtime, arguments.library)
    runtime = open_runtime(
        arguments.runtime, bundle, device, threads=arguments.threads, library=arguments.library, key=key
    )
    max_batch = arguments.max_batch
    if arguments.memory:
        max_batch = batch_within(runtime, bundle.input_of(device), arguments.memory, max_batch)
    return StudentModel(bundle, device, runtime, max_batch=max_batch, max_queue=arguments.max_queue, node=node)


def _board_key(arguments: argparse.Namespace) -> bytes | None:
    """The key for a board; None if there is none.

    Raises:
        UsageError: another machine could answer in the board's place.
    """
    if arguments.board_key:
        from nonn_device.board import read_key

        return read_key(arguments.board_key)
    kind, _, rest = arguments.runtime.partition(":")
    if kind in ("tcp", "udp") and not arguments.insecure:
        from nonn.rpc.address import is_loopback, split_address

        if not is_loopback(split_address(rest, f"--runtime {kind}")[0]):
            raise UsageError(
                f"--runtime {arguments.runtime}: frames are not authenticated; give board and gateway a key "
                "(--board-key), or add --insecure to allow it"
            )
    return None


def _endpoint(arguments: argparse.Namespace, model: StudentModel) -> Endpoint:
    """A student with the limits of this device."""
    from nonn.rpc.endpoint import Endpoint
    from nonn_device.runtime import memory_left

    if not arguments.memory:
        return Endpoint(model)
    return Endpoint(model, max(0, memory_left(arguments.memory) // 2))


def _options(arguments: argparse.Namespace, bundle: Bundle, device: int, **more: Any) -> dict[str, Any]:
    """Arguments of ``nonn.rpc.server.serve``."""
    from nonn.rpc.guard import Guard
    from nonn.rpc.wire import SERVICE
    from nonn.security.tls import load_tls

    def announce(address: str) -> None:
        line = {"event": "ready", "node": device, "address": address, "pid": os.getpid(), "bundle": bundle.hash}
        print(json.dumps(line), flush=True)

    tls = load_tls(arguments.tls, "node")
    if getattr(arguments, "dial_out", False):
        tls = None  # bound to loopback, called by this process only
    return {
        "host": arguments.host,
        "port": arguments.port,
        "insecure": arguments.insecure,
        "watch_stdin": arguments.watch_stdin,
        "on_ready": announce,
        "reflection": arguments.reflection,
        "guard": Guard(tls, {SERVICE: frozenset({"aggregator"})}) if tls else None,
        "interceptors": [arguments.tracing.interceptor] if arguments.tracing else [],
        **more,
    }


def _warn_of_memory() -> None:
    """Warns if systemd cannot enforce the memory limit of this unit."""
    import logging

    from nonn_device.vitals import can_limit_memory

    if os.environ.get("NOTIFY_SOCKET") and not can_limit_memory():
        logging.getLogger(__name__).warning(
            "the kernel has no memory control groups, so MemoryMax= of the unit has no effect; add "
            "cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot, or limit the batch with --memory"
        )


def _check(arguments: argparse.Namespace) -> int:
    """Measures a student on this device and prints the result."""
    from nonn_device.self_test import self_test

    print(json.dumps(self_test(arguments.bundle, arguments.student, arguments.runtime, arguments.library)))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    """Loads the student and serves it."""
    from nonn.bundle import load_bundle
    from nonn.rpc.address import check_bind
    from nonn.rpc.loop import run as run_loop
    from nonn.rpc.server import serve
    from nonn.telemetry.systemd import Watchdog

    arguments.host = _LOOPBACK if arguments.host is None else arguments.host
    check_bind(arguments.host, arguments.port)
    _warn_of_memory()
    device = arguments.student
    bundle = load_bundle(arguments.bundle, device=device)
    options = _options(arguments, bundle, device)
    model = _model(arguments, bundle, device)

    async def main() -> None:
        async with Watchdog() as watchdog:
            status = f"student {device} of bundle {bundle.hash[:12]}"
            await serve(
                _endpoint(arguments, model), attend=lambda _address, _end: watchdog.over(model.check, status), **options
            )

    run_loop(main())
    return 0


def _join(arguments: argparse.Namespace) -> int:
    """Gets a student and serves it; gets another one when an aggregator assigns it."""
    from nonn.rpc.address import check_bind, split_address, split_addresses, with_port
    from nonn.rpc.guard import Tokens
    from nonn.rpc.loop import run as run_loop
    from nonn.security.tls import load_tls
    from nonn_device.artifacts import Store
    from nonn_device.join import JoinOptions, Member
    from nonn_device.link import Link
    from nonn_device.pairing_options import use_pairing

    if arguments.dial_out and (arguments.host not in (None, _LOOPBACK) or arguments.advertise):
        raise UsageError("--dial-out is for a node without a reachable address: omit --host and --advertise")
    if _may_pair(arguments):
        use_pairing(arguments)
    elif arguments.code is not None or arguments.pair_with is not None:
        raise UsageError("--code and --pair-with get a certificate: leave out --tls and --join-token-file")
    elif not arguments.aggregators:
        raise UsageError("AGGREGATOR is missing: give its host:port")
    arguments.host = _LOOPBACK if arguments.host is None else arguments.host
    tls = load_tls(arguments.tls, "node")
    name = _own_id(arguments.id, tls)
    aggregators = split_addresses(",".join(arguments.aggregators), "aggregator")
    check_bind(arguments.host, arguments.port)
    _warn_of_memory()
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
    links = [Link(address, tls, token) for address in aggregators]
    member = Member(options, links, Store(arguments.data))
    run_loop(_run_member(arguments, member))
    if member.failure is not None:
        raise member.failure
    return 0


def _may_pair(arguments: argparse.Namespace) -> bool:
    """Whether the node has, or gets, its certificate by pairing."""
    return "pair_with" in arguments and arguments.tls is None and arguments.join_token_file is None


def _check_source(arguments: argparse.Namespace) -> None:
    """Checks the options of a node that senses.

    Raises:
        UsageError: an option is missing, is wrong, or two exclude each other.
    """
    if arguments.source is None:
        if arguments.send_raw:
            raise UsageError("--send-raw sends what --source measures; give a --source, or leave it out")
        return
    from nonn_device.sources import parse_source

    with usage():
        arguments.parsed = parse_source(arguments.source)
    if arguments.parsed.kind == "csv" and is_missing(Path(arguments.parsed.where)):
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
    from nonn.security.tls import check_id

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
    import asyncio

    from nonn.rpc.background import Background
    from nonn.rpc.server import serve, shutdown_event
    from nonn.telemetry.systemd import Watchdog

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
                model, stop = _model(arguments, bundle, device, member.node), asyncio.Event()
                sensor = _sensor(arguments, bundle, device, model)
                attend = _attend(watchdog, member, model, f"student {device} of bundle {bundle.hash[:12]}", sensor)
                options = _options(arguments, bundle, device, attend=attend, stop=stop)
                async with Background() as tasks:
                    # The server has a separate event, since it also ends when the next student replaces it.
                    tasks.start(relay(stop), "shutdown")
                    await serve(_endpoint(arguments, model), **options)
                if not member.moved:
                    break
        finally:
            await member.close()


async def _unless(event: asyncio.Event, coroutine: Coroutine[Any, Any, _Result]) -> _Result | None:
    """Result of a coroutine; None if the event is set first, which cancels it."""
    import asyncio

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
    import contextlib

    @contextlib.asynccontextmanager
    async def attend(address: str, end: Callable[[], None]) -> AsyncIterator[None]:
        runtime = model.metadata().properties["nonn_runtime"]
        joined = member.attend(address, end, runtime=runtime, sensor=sensor)
        async with watchdog.over(model.check, status), joined:
            yield

    return attend
