"""One node that answers calls well, and breaks the protocol of streams in one way after another.

Each way has a new aggregator, since one that has seen a broken stream asks that node by calls from then on.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc

from benchmarks import slow, storm
from benchmarks.bad import DETAILS, LINES, LONGEST, STATUSES, peak_mb
from benchmarks.endurance import DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.rpc.v1 import streaming_pb2 as pb
from nonn.rpc.wire import INFER_METHOD, INFER_STREAM_METHOD, STREAM_VERSION
from tests.serving import TIMEOUT_S, running_aggregator

__all__ = ["SECTIONS", "WAYS", "BadStreamNode"]

PERIOD_S = 3.0
GROWTH_MB = 100.0  # of the aggregator's memory during a way

Answer = Callable[[], bytes]
Way = Callable[[int, Answer], Iterable[bytes]]


def _reply(call: int, **fields: Any) -> bytes:
    return bytes(pb.StreamReply(id=call, **fields).SerializeToString())


WAYS: dict[str, Way] = {
    "nothing": lambda call, answer: (),
    "twice": lambda call, answer: itertools.repeat(_reply(call, response=answer()), 2),
    "endless": lambda call, answer: itertools.repeat(_reply(call, response=answer()), 100_000),
    "empty": lambda call, answer: (b"",),
    "noise": lambda call, answer: (random.randbytes(100_000),),
    "wrong": lambda call, answer: (_reply(call, response=random.randbytes(1000)),),
    "another": lambda call, answer: (_reply(call + 1, response=answer()),),
    "huge": lambda call, answer: (_reply(call, response=answer() + bytes(20_000_000)),),
    "status": lambda call, answer: (_reply(call, status=random.choice(STATUSES).value[0], details=DETAILS),),
    "unknown": lambda call, answer: (_reply(call, status=random.randrange(17, 2**32), details=DETAILS),),
    "end": lambda call, answer: (),
}


class BadStreamNode(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Stands before a node: passes calls on, and answers streams in a bad way.

    Args:
        honest: address of the node.
        way: one of ``WAYS``; ``end`` ends a stream at its first request.

    Attributes:
        address: ``host:port``.
        streams: number of streams that were opened.
    """

    def __init__(self, honest: str, way: str) -> None:
        self.streams, self._way = 0, way
        self._channel = grpc.insecure_channel(honest)
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: Any) -> Any:
        """Handles calls of any method, and streams."""
        if details.method == INFER_STREAM_METHOD:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        call = self._channel.unary_unary(details.method)
        return grpc.unary_unary_rpc_method_handler(lambda raw, context: call(raw, timeout=TIMEOUT_S))

    def _stream(self, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self.streams += 1
        infer = self._channel.unary_unary(INFER_METHOD)
        yield bytes(pb.StreamReply(version=STREAM_VERSION).SerializeToString())
        for message in messages:
            if self._way == "end":
                return
            request = pb.StreamRequest.FromString(message)
            raw = request.request
            if not request.cancel:
                yield from WAYS[self._way](request.id, lambda raw=raw: infer(raw, timeout=TIMEOUT_S))  # type: ignore[misc]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(None).wait()
        self._channel.close()


def _bad_streams(ground: Ground) -> Figures:
    failed, streams, growth_mb = dict[str, int](), dict[str, int](), dict[str, float]()
    records, logs = list[storm.Record](), list[str]()
    options = ("--deadline", str(DEADLINE_S))
    with LocalCluster(ground.bundle.path) as cluster, tempfile.TemporaryDirectory(prefix="nonn-bad-") as folder:
        first, *others = [state.address for state in cluster.states()]
        for way in WAYS:
            with contextlib.ExitStack() as stack:
                bad = stack.enter_context(BadStreamNode(first, way))
                own = Path(folder) / way
                own.mkdir()
                ready = stack.enter_context(
                    running_aggregator(ground.bundle.path, [bad.address, *others], own, *options)
                )
                client = stack.enter_context(Client(ready["address"], slow.CLIENT_DEADLINE_S))
                before_mb = peak_mb(ready["pid"])
                # One client, whose requests are small enough for streams; then many.
                found = slow.period(client, ground.inputs, 1, PERIOD_S)
                found += slow.period(client, ground.inputs, ground.args.concurrency, PERIOD_S)
                failed[way] = sum(record.answer is None for record in found)
                streams[way], growth_mb[way] = bad.streams, peak_mb(ready["pid"]) - before_mb
                records += found
                logs.append((own / "aggregator.log").read_text())
    lines = [line for log in logs for line in log.splitlines()]
    return {
        "bad_streams_requests": len(records),
        "bad_streams_failed": failed,
        "bad_streams_failures": reasons(records),
        "bad_streams_opened": streams,
        "bad_streams_growth_mb": growth_mb,
        "bad_streams_log_lines": max(log.count("\n") for log in logs),
        "bad_streams_log_longest": max(map(len, lines), default=0),
        "bad_streams_log_escapes": sum(line.count("\x1b") for line in lines),
    }


SECTIONS = (
    Section(
        "bad-streams",
        _bad_streams,
        {
            "a node that breaks the protocol of streams fails no request": lambda f: (
                not any(f["bad_streams_failed"].values())
            ),
            "each way of breaking streams has met an open stream": lambda f: min(f["bad_streams_opened"].values()) > 0,
            "a node that breaks the protocol of streams costs little memory": lambda f: (
                max(f["bad_streams_growth_mb"].values()) <= GROWTH_MB
            ),
            "a node with bad streams writes few, short and clean lines to the log": lambda f: (
                f["bad_streams_log_lines"] <= LINES
                and f["bad_streams_log_longest"] <= LONGEST
                and not f["bad_streams_log_escapes"]
            ),
        },
    ),
)
