"""One node that breaks the protocol in every way that gRPC lets through, and is honest at the end.

Its replies are empty, doubled, endless, noise, too large or late, or errors of every status with 4 kB of details that
contain line breaks and escape sequences. Every call to its student gets them, also probes. Then it refuses batches
only, and sends bad metadata: huge, none, noise, and a limit of one sample. Throughput while it refuses batches or
states the limit is compared with the node dead; the periods alternate.
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
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import INFER_METHOD, METADATA_METHOD
from tests.serving import TIMEOUT_S, running_aggregator

__all__ = ["BATCH_WAYS", "METADATA_WAYS", "SECTIONS", "WAYS", "BadNode", "peak_mb"]

PERIOD_S = 2.0
DETAILS = "\x1b[31mbad\x1b[0m\r\n<b>{\n" * 200
STATUSES = [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK]
LINES, LONGEST = 200, 2000  # lines that one bad node may write to the log, and characters of each

ROUNDS = 3  # of periods in which throughput is compared
METADATA_S = 12.0  # in which the aggregator asks for metadata at least once
GROWTH_MB = 100.0  # of the aggregator's peak memory during bad metadata

Honest = Callable[[], bytes]
Way = Callable[[Honest, Any], Iterator[bytes]]


def _status(honest: Honest, context: Any) -> Iterator[bytes]:
    context.abort(random.choice(STATUSES), DETAILS)
    yield b""


def _late(honest: Honest, context: Any) -> Iterator[bytes]:
    time.sleep(3 * DEADLINE_S)
    yield honest()


def _dead(honest: Honest, context: Any) -> Iterator[bytes]:
    context.abort(grpc.StatusCode.UNAVAILABLE, "dead")
    yield b""


def _batches(honest: Honest, context: Any) -> Iterator[bytes]:
    reply = honest()
    if pb.ModelInferResponse.FromString(reply).outputs[0].shape[0] > 1:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "its features are not finite")
    yield reply


def _limit(honest: Honest, context: Any) -> Iterator[bytes]:
    metadata = pb.ModelMetadataResponse.FromString(honest())
    metadata.properties["nonn_max_batch"] = "1"
    yield metadata.SerializeToString()


WAYS: dict[str, Way] = {
    "nothing": lambda honest, context: iter(()),
    "twice": lambda honest, context: itertools.repeat(honest(), 2),
    "endless": lambda honest, context: itertools.repeat(honest(), 100_000),
    "empty": lambda honest, context: iter((b"",)),
    "noise": lambda honest, context: iter((random.randbytes(1_000_000),)),
    "huge": lambda honest, context: iter((honest() + bytes(20_000_000),)),
    "status": _status,
    "late": _late,
}
METADATA_WAYS: dict[str, Way] = {
    "metadata-huge": lambda honest, context: iter((b"\x22\x00" * 5_000_000,)),  # empty tensors
    "metadata-nothing": lambda honest, context: iter(()),
    "metadata-noise": lambda honest, context: iter((random.randbytes(10_000),)),
}
LIMITED, DEAD = "metadata-limit", "dead"
BATCH_WAYS: dict[str, Way] = {"batches": _batches, LIMITED: _limit, DEAD: _dead}


class BadNode(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Stands before a node and answers its calls in a bad way.

    Args:
        honest: address of the node.

    Attributes:
        address: ``host:port``.
        way: one of ``WAYS``, ``BATCH_WAYS`` and ``METADATA_WAYS``; empty to be honest.
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

            asked = METADATA_METHOD if self.way in (*METADATA_WAYS, LIMITED) else INFER_METHOD
            way = (WAYS | METADATA_WAYS | BATCH_WAYS).get(self.way) if method == asked else None
            return way(honest, context) if way else iter((honest(),))

        return grpc.unary_stream_rpc_method_handler(answer)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(None).wait()
        self._channel.close()


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): sets the peak to the current value


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process since the last reset."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1.024e-3 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def _bad(ground: Ground) -> Figures:
    failed, members, records = dict[str, int](), 0, list[storm.Record]()
    rates: dict[str, list[float]] = {way: [] for way in BATCH_WAYS}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn-bad-")))
        first, *others = [s.address for s in stack.enter_context(LocalCluster(ground.bundle.path)).states()]
        bad = stack.enter_context(BadNode(first))
        options = ("--deadline", str(DEADLINE_S))
        ready = stack.enter_context(running_aggregator(ground.bundle.path, [bad.address, *others], folder, *options))
        client = stack.enter_context(Client(ready["address"], slow.CLIENT_DEADLINE_S))

        def period(seconds: float = PERIOD_S) -> list[storm.Record]:
            found = slow.period(client, ground.inputs, ground.args.concurrency, seconds)
            failed[bad.way] = failed.get(bad.way, 0) + sum(record.answer is None for record in found)
            records.extend(found)
            return found

        def be_honest() -> float:
            bad.way, start = "", time.monotonic()
            while not client.infer(ground.inputs[:1]).answered[0] and time.monotonic() - start < TIMEOUT_S:
                time.sleep(0.05)
            return time.monotonic() - start

        slow.period(client, ground.inputs, ground.args.concurrency, PERIOD_S)
        for bad.way in WAYS:
            now = period()
            # Calls from before the change may still be answered.
            members += sum(r.answer is not None and bool(r.answer.answered[0]) for r in now[len(now) // 2 :])
        back_s = be_honest()
        _reset_peak(ready["pid"])
        before_mb = peak_mb(ready["pid"])
        for bad.way in METADATA_WAYS:
            period(METADATA_S)
        for way in ROUNDS * [*BATCH_WAYS]:
            be_honest()
            bad.way = way
            period(METADATA_S if way == LIMITED else PERIOD_S)
            rates[way].append(slow.rate(period()))
        growth_mb, log = peak_mb(ready["pid"]) - before_mb, (folder / "aggregator.log").read_text()
    return {
        "bad_requests": len(records),
        "bad_failed": failed,
        "bad_failures": reasons(records),
        "bad_members": members,
        "bad_back_s": back_s,
        "bad_ratio": {way: sum(found) / sum(rates[DEAD]) for way, found in rates.items() if way != DEAD},
        "bad_growth_mb": growth_mb,
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
            "a node that refuses batches or states a tiny limit leaves half of the throughput without it": lambda f: (
                min(f["bad_ratio"].values()) >= 0.5
            ),
            "bad metadata costs little memory": lambda f: f["bad_growth_mb"] <= GROWTH_MB,
            "a node that keeps the protocol again is in use again": lambda f: f["bad_back_s"] < TIMEOUT_S,
            "a bad node writes few, short and clean lines to the log": lambda f: (
                f["bad_log_lines"] <= LINES and f["bad_log_longest"] <= LONGEST and not f["bad_log_escapes"]
            ),
        },
    ),
)
