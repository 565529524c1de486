"""``nonn-device``: the process on a device.

Exit codes: 0 shut down on request, 2 usage, 3 bundle, address or certificate, or refused by the aggregator. When ready
for requests, ``serve`` and ``join`` print one line of JSON on standard output and nothing else; logs go to standard
error.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Sequence

from nonn import __version__
from nonn.arguments import addresses, count, existing, path, port, whole
from nonn.commandline import run_command
from nonn.telemetry.log import add_log_arguments, configure_logging

__all__ = ["build_parser", "main"]

_student = whole(0, 2**31 - 1)  # as the protocol has it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run_command(build_parser(), argv)


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """A command that first sets up the process: threads, logs, traces.

    It is imported only then, so that --help and wrong options do not wait for NumPy, gRPC and ONNX Runtime.
    """

    def run(arguments: argparse.Namespace) -> int:
        # A node multiplies nothing in NumPy: threads of its BLAS would only cost memory.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        arguments.may_pair = _may_pair(arguments)
        if arguments.tls or arguments.may_pair:
            from nonn.security.handshake import log_failed_handshakes

            log_failed_handshakes()
        configure_logging(arguments.log_format)
        arguments.tracing = None
        if arguments.trace:
            from nonn.telemetry.tracing import Tracing

            arguments.tracing = Tracing.to(arguments.trace, "nonn-device", "nonn.infer", begins=False)
        code: int = importlib.import_module(f"nonn_device.commands.{name}").run(arguments)
        return code

    return run


def _may_pair(arguments: argparse.Namespace) -> bool:
    """Whether the node has, or gets, its certificate by pairing."""
    return "pair_with" in arguments and arguments.tls is None and arguments.join_token_file is None


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``nonn-device``."""
    parser = argparse.ArgumentParser(prog="nonn-device", description="One student of a bundle on this device.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a student until shutdown")
    serve.set_defaults(run=_command("serve"))
    join = commands.add_parser("join", help="get a student from an aggregator, and serve it until shutdown")
    _add_join_options(join)
    join.set_defaults(run=_command("join"))
    check = commands.add_parser("check", help="run a student in a separate process, and print its time and memory")
    check.set_defaults(run=_command("check"), tls=None, trace=None, log_format="text")
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
        help="measure windows here and send their features: csv:FILE, iio:DEVICE, serial:PORT, mqtt:HOST/TOPIC, - "
        "(standard input), v4l2:DEVICE, video:FILE, picamera2:NUMBER, or package.module:factory",
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
    if text.startswith(("tcp:", "udp:")):
        addresses(text[4:])
    return text
