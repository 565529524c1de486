"""``nonn-device serve``: a student of a bundle on this device, until shutdown; ``join`` serves with the same parts."""

from __future__ import annotations

import argparse
import json
import logging
import os
from typing import Any

from nonn.bundle import Bundle, load_bundle
from nonn.errors import UsageError
from nonn.rpc.address import check_bind, is_loopback, split_address
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.guard import Guard
from nonn.rpc.loop import run as run_loop
from nonn.rpc.server import serve
from nonn.rpc.streaming import StreamingServicer
from nonn.rpc.wire import SERVICE, STREAMING_SERVICE
from nonn.security.tls import load_tls
from nonn.telemetry.systemd import Watchdog
from nonn_device.node import StudentModel
from nonn_device.runtime import batch_within, memory_left, open_runtime
from nonn_device.vitals import can_limit_memory, release_code

__all__ = ["LOOPBACK", "endpoint_of", "model_of", "run", "server_options", "warn_of_memory"]

LOOPBACK = "127.0.0.1"


def run(arguments: argparse.Namespace) -> int:
    """Loads the student and serves it."""
    arguments.host = LOOPBACK if arguments.host is None else arguments.host
    check_bind(arguments.host, arguments.port)
    warn_of_memory()
    device = arguments.student
    bundle = load_bundle(arguments.bundle, device=device)
    endpoint = endpoint_of(arguments, model := model_of(arguments, bundle, device))
    options = server_options(arguments, bundle, device, endpoint)

    async def main() -> None:
        async with Watchdog() as watchdog:
            attend = watchdog.over(model.check, f"student {device} of bundle {bundle.hash[:12]}")
            await serve(endpoint, attend=lambda _address, _end: attend, **options)

    run_loop(main())
    return 0


def model_of(arguments: argparse.Namespace, bundle: Bundle, device: int, node: str = "") -> StudentModel:
    """A student of a bundle, ready to run; ``node`` is the id of a device that joins."""
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
    release_code()
    return StudentModel(
        bundle,
        device,
        runtime,
        max_batch=max_batch,
        max_queue=arguments.max_queue,
        node=node,
        remote=arguments.runtime not in ("onnx", "c"),
    )


def _board_key(arguments: argparse.Namespace) -> bytes | None:
    """The key for a board; None if there is none.

    Raises:
        UsageError: another machine could answer in the board's place.
    """
    if arguments.board_key:
        from nonn_device.board import read_key

        return read_key(arguments.board_key)
    kind, _, rest = arguments.runtime.partition(":")
    unsafe = kind in ("tcp", "udp") and not arguments.insecure
    if unsafe and not is_loopback(split_address(rest, f"--runtime {kind}")[0]):
        raise UsageError(
            f"--runtime {arguments.runtime}: frames are not authenticated; give board and gateway a key "
            "(--board-key), or add --insecure to allow it"
        )
    return None


def endpoint_of(arguments: argparse.Namespace, model: StudentModel) -> Endpoint:
    """A student with the limits of this device."""
    if not arguments.memory:
        return Endpoint(model)
    return Endpoint(model, max(0, memory_left(arguments.memory) // 2))


def server_options(
    arguments: argparse.Namespace, bundle: Bundle, device: int, endpoint: Endpoint, **more: Any
) -> dict[str, Any]:
    """Arguments of ``nonn.rpc.server.serve``."""

    def announce(address: str) -> None:
        line = {"event": "ready", "node": device, "address": address, "pid": os.getpid(), "bundle": bundle.hash}
        print(json.dumps(line), flush=True)

    tls = load_tls(arguments.tls, "node")
    if getattr(arguments, "dial_out", False):
        tls = None  # bound to loopback, called by this process only
    guard = Guard(tls, dict.fromkeys((SERVICE, STREAMING_SERVICE), frozenset({"aggregator"}))) if tls else None
    return {
        "host": arguments.host,
        "port": arguments.port,
        "insecure": arguments.insecure,
        "watch_stdin": arguments.watch_stdin,
        "on_ready": announce,
        "reflection": arguments.reflection,
        "services": [StreamingServicer(endpoint, guard).add_to],
        "guard": guard,
        "interceptors": [arguments.tracing.interceptor] if arguments.tracing else [],
        **more,
    }


def warn_of_memory() -> None:
    """Warns if systemd cannot enforce the memory limit of this unit."""
    if os.environ.get("NOTIFY_SOCKET") and not can_limit_memory():
        logging.getLogger(__name__).warning(
            "the kernel has no memory control groups, so MemoryMax= of the unit has no effect; add "
            "cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot, or limit the batch with --memory"
        )
