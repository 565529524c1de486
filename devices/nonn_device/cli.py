"""``nonn-device``: the process on a device.

Exit codes: 0 ended by a signal, 2 usage, 3 bundle, address or certificate, or refused by the aggregator. When it
answers requests it prints one line of JSON on standard output, and nothing else ever; its log is on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nonn import __version__
from nonn.errors import ConfigError, NonnError
from nonn.telemetry.log import add_log_arguments, configure_logging

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Coroutine

    from nonn.bundle import Bundle
    from nonn.rpc.server import Attend
    from nonn.security.tls import TlsFolder
    from nonn.telemetry.systemd import Watchdog
    from nonn_device.join import Member
    from nonn_device.node import StudentModel

__all__ = ["build_parser", "main"]

_Result = TypeVar("_Result")

# Of each number the least and the greatest that the node, the runtime or the protocol can take.
_RANGES = {"student": (0, 2**31 - 1), "threads": (1, 256), "memory": (0, 2**31 - 1), "max_model_bytes": (0, 2**63 - 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    arguments = build_parser().parse_args(argv)
    # A node multiplies nothing in NumPy: threads of its BLAS would cost memory for nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if arguments.tls:
        from nonn.security.handshake import log_failed_handshakes

        log_failed_handshakes()
    # gRPC's own log tells a taken port in C++; our error tells it too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    configure_logging(arguments.log_format)
    arguments.tracing = None
    try:
        if arguments.trace:
            from nonn.telemetry.tracing import Tracing

            arguments.tracing = Tracing.to(arguments.trace, "nonn-device", "nonn.infer", begins=False)
        _check_numbers(arguments)
        return int(arguments.run(arguments))
    except NonnError as exc:
        print(f"nonn-device: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        if arguments.tracing:
            arguments.tracing.close()


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``nonn-device``."""
    parser = argparse.ArgumentParser(prog="nonn-device", description="One student of a bundle on this device.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a student until told to end")
    serve.set_defaults(run=_serve)
    join = commands.add_parser("join", help="get a student from an aggregator, and serve it until told to end")
    _add_join_options(join)
    join.set_defaults(run=_join)
    check = commands.add_parser("check", help="run a student once, in a process of its own, and say what it takes")
    check.set_defaults(run=_check, tls=None, trace=None, log_format="text")
    for command in (serve, check):
        command.add_argument(
            "bundle", type=Path, metavar="BUNDLE", help="folder with manifest.json and this student's file"
        )
        command.add_argument(
            "--student", type=int, required=True, metavar="I", help="number of the student in the bundle"
        )
    for command in (serve, join):
        _add_serving_options(command)
    for command in (serve, join, check):
        _add_runtime_options(command)
    return parser


def _add_join_options(parser: argparse.ArgumentParser) -> None:
    """Options of a node that joins."""
    parser.add_argument("aggregators", nargs="+", metavar="AGGREGATOR", help="host:port; of several, each is joined")
    parser.add_argument("--id", metavar="ID", help="of this device; with --tls its certificate says it")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the student is kept")
    parser.add_argument("--student", type=int, metavar="I", help="the student to run (default: what is needed most)")
    parser.add_argument("--advertise", default="", metavar="HOST[:PORT]", help="where the aggregators find this node")
    parser.add_argument("--dial-out", action="store_true", help="nobody can call this device: it fetches its requests")
    parser.add_argument("--max-model-bytes", type=int, default=0, metavar="B", help="largest student that fits")
    parser.add_argument("--join-token-file", type=Path, metavar="FILE", help="token that lets it join without TLS")


def _add_serving_options(parser: argparse.ArgumentParser) -> None:
    """Options of every node, wherever it has its student from."""
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to bind; 0, the default, is any free one")
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference (default: %(default)s)")
    parser.add_argument(
        "--max-batch", type=int, default=1024, metavar="B", help="samples of one request (default: %(default)s)"
    )
    parser.add_argument(
        "--max-queue", type=int, default=64, metavar="N", help="requests that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--memory", type=int, default=0, metavar="MB", help="memory that the node may hold; batches are limited to it"
    )
    parser.add_argument("--self-test", action="store_true", help="run the student in a process of its own first")
    parser.add_argument("--tls", type=Path, metavar="DIR", help="this node's folder of nonn certs; serves TLS only")
    parser.add_argument("--insecure", action="store_true", help="serve beyond loopback without TLS")
    parser.add_argument("--reflection", action="store_true", help="tell clients what there is to call")
    parser.add_argument("--watch-stdin", action="store_true", help="end when standard input closes")
    add_log_arguments(parser)


def _add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """What runs the student."""
    parser.add_argument(
        "--runtime", choices=("onnx", "c"), default="onnx", help="ONNX Runtime or compiled C (default: %(default)s)"
    )
    parser.add_argument(
        "--library", type=Path, metavar="FILE", help="compiled student (default: where nonn export puts it)"
    )


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Checks what types cannot say.

    Raises:
        ConfigError: names the option, its value and what it may be.
    """
    for name, (least, greatest) in _RANGES.items():
        value = getattr(arguments, name, None)
        if value is not None and not least <= value <= greatest:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must lie between {least} and {greatest:,}")


# What follows imports late: a wrong option or --help need not wait for NumPy, gRPC and ONNX Runtime.


def _model(arguments: argparse.Namespace, bundle: Bundle, device: int) -> StudentModel:
    """A student of a bundle, ready to run."""
    from nonn_device.node import StudentModel
    from nonn_device.runtime import batch_within, open_runtime

    if arguments.self_test:
        from nonn_device.self_test import self_test

        self_test(bundle.path, device, arguments.runtime, arguments.library)
    runtime = open_runtime(arguments.runtime, bundle, device, threads=arguments.threads, library=arguments.library)
    max_batch = arguments.max_batch
    if arguments.memory:
        max_batch = batch_within(runtime, bundle.input_of(device), arguments.memory, max_batch)
    return StudentModel(bundle, device, runtime, max_batch=max_batch, max_queue=arguments.max_queue)


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
        tls = None  # bound to loopback, and asked by this process alone
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


def _check(arguments: argparse.Namespace) -> int:
    """Says what a student takes on this device."""
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

    check_bind(arguments.host, arguments.port)
    device = arguments.student
    bundle = load_bundle(arguments.bundle, device=device)
    options = _options(arguments, bundle, device)
    model = _model(arguments, bundle, device)

    async def main() -> None:
        async with Watchdog() as watchdog:
            status = f"student {device} of bundle {bundle.hash[:12]}"
            await serve(model, attend=lambda _address, _end: watchdog.over(model.check, status), **options)

    run_loop(main())
    return 0


def _join(arguments: argparse.Namespace) -> int:
    """Gets a student and serves it; gets another one when an aggregator requires it."""
    from nonn.rpc.address import check_bind, split_address, with_port
    from nonn.rpc.guard import Tokens
    from nonn.rpc.loop import run as run_loop
    from nonn.security.tls import load_tls
    from nonn_device.artifacts import Store
    from nonn_device.join import JoinOptions, Member
    from nonn_device.link import Link

    if arguments.dial_out and (arguments.host != "127.0.0.1" or arguments.advertise):
        raise ConfigError("--dial-out is for a node that nobody can call: leave --host and --advertise out")
    tls = load_tls(arguments.tls, "node")
    name = _own_id(arguments.id, tls)
    for address in arguments.aggregators:
        split_address(address, "aggregator")
    check_bind(arguments.host, arguments.port)
    if arguments.advertise:
        split_address(with_port(arguments.advertise, "1"), "--advertise")
    token = Tokens(arguments.join_token_file) if arguments.join_token_file else None
    options = JoinOptions(
        node=name,
        student=arguments.student,
        advertise=arguments.advertise,
        max_model_bytes=arguments.max_model_bytes,
        dials_out=arguments.dial_out,
    )
    links = [Link(address, tls, token) for address in dict.fromkeys(arguments.aggregators)]
    member = Member(options, links, Store(arguments.data))
    run_loop(_run_member(arguments, member))
    if member.failure is not None:
        raise member.failure
    return 0


def _own_id(given: str | None, tls: TlsFolder | None) -> str:
    """The id of this device, from its certificate or the operator.

    Raises:
        ConfigError: there is neither, it is no id, or the two differ.
    """
    from nonn.security.tls import check_id

    name = given or (tls.identity.id if tls else "")
    if not name:
        raise ConfigError("--id is missing: without TLS nothing else says which device this is")
    if tls is not None and tls.identity.id != name:
        raise ConfigError(f"--id {name}: the certificate in {tls.path} is of {tls.identity}; leave --id out")
    return check_id(name)


async def _run_member(arguments: argparse.Namespace, member: Member) -> None:
    """Prepares and serves until the process is told to end."""
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
                # Started, even if no aggregator is there yet: it waits for one as long as it takes.
                watchdog.ready("asks for a student")
                prepared = await _unless(shutdown, member.prepare())
                if prepared is None:
                    break
                bundle, device = prepared
                model, stop = _model(arguments, bundle, device), asyncio.Event()
                attend = _attend(watchdog, member, model, f"student {device} of bundle {bundle.hash[:12]}")
                options = _options(arguments, bundle, device, attend=attend, stop=stop)
                async with Background() as tasks:
                    # The server has a separate event, since it also ends to make room for the next student.
                    tasks.start(relay(stop), "shutdown")
                    await serve(model, **options)
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


def _attend(watchdog: Watchdog, member: Member, model: StudentModel, status: str) -> Attend:
    """What runs next to the requests of a node that has joined."""
    import contextlib

    @contextlib.asynccontextmanager
    async def attend(address: str, end: Callable[[], None]) -> AsyncIterator[None]:
        runtime = model.metadata().properties["nonn_runtime"]
        async with watchdog.over(model.check, status), member.attend(address, end, runtime=runtime):
            yield

    return attend
