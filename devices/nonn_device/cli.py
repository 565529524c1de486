"""``nonn-device``: the process on a device.

Exit codes: 0 ended as told, 2 usage, 3 bundle or address. When it answers requests it prints one line of JSON on
standard output, and nothing else ever; its log is on standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nonn.errors import NonnError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="nonn-device", description="One student of a bundle on this device.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a student until told to end")
    serve.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder with manifest.json and this student's file")
    serve.add_argument("--student", type=int, required=True, metavar="I", help="number of the student in the bundle")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    serve.add_argument("--port", type=int, default=0, help="port to bind; 0, the default, is any free one")
    serve.add_argument("--threads", type=int, default=1, help="threads of one inference (default: %(default)s)")
    serve.add_argument("--insecure", action="store_true", help="serve beyond loopback without TLS")
    serve.add_argument("--watch-stdin", action="store_true", help="end when standard input closes")
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return _serve(arguments)
    except NonnError as exc:
        print(f"nonn-device: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return 130


def _serve(arguments: argparse.Namespace) -> int:
    """Loads the student and serves it."""
    # A node multiplies nothing in NumPy: threads of its BLAS would cost memory for nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # gRPC's own log tells a taken port in C++; our error tells it too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported late: a wrong option or --help need not wait for NumPy, gRPC and ONNX Runtime.
    import asyncio

    from nonn.bundle import load_bundle
    from nonn.rpc.server import serve
    from nonn_device.node import StudentModel
    from nonn_device.runtime import OnnxRuntime

    device = arguments.student
    bundle = load_bundle(arguments.bundle, device=device)
    student = bundle.manifest.students[device]
    runtime = OnnxRuntime(bundle.student_path(device), student, bundle.manifest.input, arguments.threads)

    def announce(address: str) -> None:
        line = {"event": "ready", "node": device, "address": address, "pid": os.getpid(), "bundle": bundle.hash}
        print(json.dumps(line), flush=True)

    asyncio.run(
        serve(
            StudentModel(bundle, device, runtime),
            host=arguments.host,
            port=arguments.port,
            insecure=arguments.insecure,
            watch_stdin=arguments.watch_stdin,
            on_ready=announce,
        )
    )
    return 0
