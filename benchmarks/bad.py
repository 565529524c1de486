"""One node that breaks the protocol in every way that gRPC lets through, and is honest at the end.

Its replies are empty, doubled, endless, noise, too large or late, or errors of every status with 4 kB of details that
contain line breaks and escape sequences. Every call to its student gets them, also probes.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc

from benchmarks import slow, storm
from benchmarks.endurance import DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.rpc.wire import INFER_METHOD
from tests.serving import TIMEOUT_S, running_aggregator

__all__ = ["SECTIONS", "WAYS", "BadNode"]

PERIOD_S = 2.0
DETAILS = "\x1b[31mbad\x1b[0m\r\n<b>{\n" * 200
STATUSES = [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK]
LINES, LONGEST = 200, 2000  # lines that one bad node may write to the log, and characters of each

Honest = Callable[[], bytes]


def _status(honest: Honest, context: Any) -> Iterator[bytes]:
    context.abort(random.choice(STATUSES), DETAILS)
    yield b""


def _late(honest: Honest, context: Any) -> Iterator[bytes]:
    time.sleep(3 * DEADLINE_S)
    yield honest()


WAYS: dict[str, Callable[[Honest, Any], Iterator[bytes]]] = {
    "nothing": lambda honest, context: iter(()),
    "twice": lambda honest, context: itertools.repeat(honest(), 2),
    "endless": lambda honest, context: itertools.repeat(honest(), 100_000),
    "empty": lambda honest, context: iter((b"",)),
    "noise": lambda honest, context: iter((random.randbytes(1_000_000),)),
    "huge": lambda honest, context: iter((honest() + bytes(20_000_000),)),
    "status": _status,
    "late": _late,
}


class BadNode(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Stands before a node and answers its calls in a bad way.

    Args:
        honest: address of the node.

    Attributes:
        address: ``host:port``.
        way: one of ``WAYS``; empty to be honest.
    """

    def __init__(self, honest: str) -> None:
        self.way = ""
        self._channel = grpc.insecure_channel(honest)
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: Any) -> Any:
        """Handles any method, bytes to a stream of bytes."""
        method = details.method

        def answer(raw: bytes, context: Any) -> Iterator[bytes]:
            def honest() -> bytes:
                return bytes(self._channel.unary_unary(method)(raw, timeout=TIMEOUT_S))

            way = WAYS.get(self.way) if method == INFER_METHOD else None
            return way(honest, context) if way else iter((honest(),))

        return grpc.unary_stream_rpc_method_handler(answer)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(None).wait()
        self._channel.close()


def _bad(ground: Ground) -> Figures:
    failed, members, records = dict[str, int](), 0, list[storm.Record]()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn-bad-")))
        first, *others = [s.address for s in stack.enter_context(LocalCluster(ground.bundle.path)).states()]
        bad = stack.enter_context(BadNode(first))
        options = ("--deadline", str(DEADLINE_S))
        ready = stack.enter_context(running_aggregator(ground.bundle.path, [bad.address, *others], folder, *options))
        client = stack.enter_context(Client(ready["address"], slow.CLIENT_DEADLINE_S))
        slow.period(client, ground.inputs, ground.args.concurrency, PERIOD_S)
        for bad.way in WAYS:
            now = slow.period(client, ground.inputs, ground.args.concurrency, PERIOD_S)
            failed[bad.way] = sum(record.answer is None for record in now)
            # Calls from before the change may still be answered.
            members += sum(r.answer is not None and bool(r.answer.answered[0]) for r in now[len(now) // 2 :])
            records += now
        bad.way, start = "", time.monotonic()
        while not client.infer(ground.inputs[:1]).answered[0] and time.monotonic() - start < TIMEOUT_S:
            time.sleep(0.05)
        back_s, log = time.monotonic() - start, (folder / "aggregator.log").read_text()
    return {
        "bad_requests": len(records),
        "bad_failed": failed,
        "bad_failures": reasons(records),
        "bad_members": members,
        "bad_back_s": back_s,
        "bad_log_lines": log.count("\n"),
        "bad_log_longest": max(map(len, log.splitlines()), default=0),
        "bad_log_escapes": log.count("\x1b"),
    }


SECTIONS = (
    Section(
        "bad",
        _bad,
        {
            "a node that breaks the protocol fails no request": lambda f: not any(f["bad_failed"].values()),
            "a node that breaks the protocol is in no answer": lambda f: f["bad_members"] == 0,
            "a node that keeps the protocol again is in use again": lambda f: f["bad_back_s"] < TIMEOUT_S,
            "a bad node writes few, short and clean lines to the log": lambda f: (
                f["bad_log_lines"] <= LINES and f["bad_log_longest"] <= LONGEST and not f["bad_log_escapes"]
            ),
        },
    ),
)
