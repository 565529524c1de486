"""Memory of an aggregator and its nodes under the largest legal requests of many clients at once.

The aggregator has the limits of its unit for systemd, which kills it above ``MemoryMax=``. Then, with the default
limits, some clients send requests that are legal and expensive to parse, one after another, while others ask.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import psutil

from benchmarks import storm
from benchmarks.endurance import CLIENT_DEADLINE_S, DEADLINE_S
from benchmarks.section import Figures, Ground, Section
from nonn.client import Client
from nonn.errors import NonnError, OverloadError
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import CHANNEL_OPTIONS, INFER_METHOD
from tests.toys import toy_bundle, toy_data
from tests.units import AGGREGATOR, DEVICE, limits_of, memory_max_mb

__all__ = ["EXPENSIVE", "SECTIONS", "SHAPE", "expensive_requests", "large_requests"]

SHAPE = (3, 32, 32)
CLIENTS, PATIENCE_S = 64, 10.0
OTHERS, WARM_UP, EXPENSIVE_S = 4, 200, 10.0
GIVEN_BACK_MB = 60  # what large requests may leave behind
SETTLE_S = 5.0  # until memory is given back


class Peak(storm.Sampler):
    """Highest resident memory of processes while the block runs, in MB."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__()
        self._processes = [psutil.Process(pid) for pid in pids]
        self.peak_mb = self.resident_mb()

    def resident_mb(self) -> list[float]:
        """Resident memory of each process now."""
        return [process.memory_info().rss / 1e6 for process in self._processes]

    def sample(self, passed_s: float) -> None:
        """Compares the resident memory with the peak so far."""
        self.peak_mb = [max(pair) for pair in zip(self.peak_mb, self.resident_mb(), strict=True)]


def large_requests(
    site: storm.Site, *, concurrency: int, num_samples: int, settle_s: float = SETTLE_S
) -> dict[str, Any]:
    """So many clients, each with a connection, send a large request at once.

    Args:
        site: cluster of a bundle with inputs of ``SHAPE``.
        concurrency: number of clients.
        num_samples: samples of a request, in float32.
        settle_s: time until memory is measured again.

    Returns:
        Resident memory in MB before, at the peak and afterwards, and how many requests were refused or failed.
    """
    batch = np.random.default_rng(0).uniform(0, 255, (num_samples, *SHAPE)).astype(np.float32)
    start, errors, lock = threading.Barrier(concurrency), list[NonnError](), threading.Lock()

    def ask() -> None:
        with Client(site.address, 60.0) as client:
            client.infer(batch[:1])
            start.wait()
            try:
                client.infer(batch)
            except NonnError as exc:
                with lock:
                    errors.append(exc)

    pids = [site.pid, *(state.pid for state in site.cluster.states() if state.pid)]
    threads = [threading.Thread(target=ask) for _ in range(concurrency)]
    with Peak(pids) as peak:
        before_mb = peak.resident_mb()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        peak_mb = peak.peak_mb
        time.sleep(settle_s)
        after_mb = peak.resident_mb()
    refused = sum(isinstance(error, OverloadError) for error in errors)
    return {
        "memory_request_mb": batch.nbytes / 1e6,
        "memory_aggregator_before_mb": before_mb[0],
        "memory_aggregator_peak_mb": peak_mb[0],
        "memory_aggregator_after_mb": after_mb[0],
        "memory_node_peak_mb": max(peak_mb[1:]),
        "memory_node_after_mb": max(after_mb[1:]),
        "memory_refused": refused,
        "memory_failures": sorted(set(map(str, errors)))[:5],
        "memory_failed": len(errors) - refused,
    }


def _typed(num_values: int) -> bytes:
    """Bytes as typed contents, which only a loop over all values can convert."""
    request = pb.ModelInferRequest(model_name="nonn")
    tensor = request.inputs.add(name="input", datatype="UINT8", shape=[num_values])
    tensor.contents.uint_contents.extend(np.ones(num_values, np.uint32))
    return bytes(request.SerializeToString())


def _sizes(num_sizes: int) -> bytes:
    """A shape whose product has millions of digits."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="input", datatype="UINT8", shape=[2**62] * num_sizes)
    return bytes(pb.ModelInferRequest(model_name="nonn", inputs=[tensor]).SerializeToString())


EXPENSIVE = {  # messages of 12 MB
    "values": lambda: _typed(12_000_000),
    "tensors": lambda: b"\x2a\x00" * 6_000_000,
    "sizes": lambda: _sizes(1_300_000),
}


def expensive_requests(site: storm.Site, *, concurrency: int, seconds: float) -> dict[str, Any]:
    """For each of ``EXPENSIVE`` a client sends it again and again, while others ask for one sample at a time.

    Args:
        site: cluster of a bundle with inputs of ``SHAPE``.
        concurrency: number of other clients.
        seconds: duration.

    Returns:
        Number of requests of each kind and their status; failed, wrong and late answers of the others; peak memory.
    """
    inputs, over = toy_data(200, 3, SHAPE)[0], threading.Event()  # the test samples of the bundle
    sent, codes = dict.fromkeys(EXPENSIVE, 0), set[str]()

    def attack(kind: str, raw: bytes) -> None:
        with grpc.insecure_channel(site.address, CHANNEL_OPTIONS) as channel:
            call = channel.unary_unary(INFER_METHOD)
            while not over.is_set():
                try:
                    call(raw, timeout=60.0)
                    codes.add("OK")
                except grpc.RpcError as exc:
                    codes.add(exc.code().name)
                sent[kind] += 1

    threads = [threading.Thread(target=attack, args=(kind, made())) for kind, made in EXPENSIVE.items()]
    with Client(site.address, CLIENT_DEADLINE_S) as client:
        storm.load(client, inputs, concurrency, lambda number: number < WARM_UP, kept=False)
        with Peak([site.pid]) as peak:
            for thread in threads:
                thread.start()
            until = time.monotonic() + seconds
            records = storm.load(client, inputs, concurrency, lambda number: time.monotonic() < until, kept=False)
            over.set()
            for thread in threads:
                thread.join()
    latency_s = [record.done_s - record.asked_s for record in records]
    return {
        "expensive_requests": sent,
        "expensive_codes": sorted(codes),
        "expensive_others_requests": len(records),
        "expensive_others_failed": sum(record.answer is None for record in records),
        "expensive_others_wrong": len(storm.wrong_answers(site.bundle, records)),
        "expensive_others_p99_ms": 1e3 * float(np.percentile(latency_s, 99)),
        "expensive_peak_mb": peak.peak_mb[0],
    }


def largest(limits: Sequence[str]) -> int:
    """Samples of ``SHAPE`` in float32 that the largest request has under these limits."""
    given = dict(zip(limits[::2], limits[1::2], strict=True))
    return int(float(given["--max-request-mb"]) * 1e6 / 4 / np.prod(SHAPE))


def _large(ground: Ground) -> Figures:
    large, limits = toy_bundle(ground.folder / "large", 2, shape=SHAPE), limits_of(AGGREGATOR)
    with storm.site(large, PATIENCE_S, ground.args.seed, limits) as site:
        figures = large_requests(site, concurrency=CLIENTS, num_samples=largest(limits))
    with storm.site(large, DEADLINE_S, ground.args.seed) as site:
        return figures | expensive_requests(site, concurrency=OTHERS, seconds=EXPENSIVE_S)


SECTIONS = (
    Section(
        "bytes",
        _large,
        {
            "large requests are answered, or refused as an overload": lambda f: f["memory_failed"] == 0,
            "memory of large requests is given back": lambda f: (
                f["memory_aggregator_after_mb"] <= f["memory_aggregator_before_mb"] + GIVEN_BACK_MB
            ),
            "large requests leave an aggregator below the limit of its unit": lambda f: (
                f["memory_aggregator_peak_mb"] <= memory_max_mb(AGGREGATOR)
            ),
            "large requests leave a node below the limit of its unit": lambda f: (
                f["memory_node_peak_mb"] <= memory_max_mb(DEVICE)
            ),
            "requests that are expensive to parse are refused": lambda f: f["expensive_codes"] == ["INVALID_ARGUMENT"],
            "with requests that are expensive to parse p99 of the others is below the deadline": lambda f: (
                f["expensive_others_failed"] == f["expensive_others_wrong"] == 0
                and f["expensive_others_p99_ms"] < 1e3 * DEADLINE_S
            ),
            "requests that are expensive to parse leave an aggregator below the limit of its unit": lambda f: (
                f["expensive_peak_mb"] <= memory_max_mb(AGGREGATOR)
            ),
        },
    ),
)
