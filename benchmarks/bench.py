"""``make bench``: what nonn costs, on this machine, in one run.

Writes ``benchmarks/results/bench.json``: flat keys with units in the name, and the machine, versions, code version
and date that they belong to. Machines are noisy: times are medians, and where two things are compared they are
interleaved and their ratio is given.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nonn.bundle import Bundle, load_bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.config import load_experiment
from nonn.files import write_json
from nonn.fusion import ZeroFill, enumerate_subsets
from nonn.provenance import code_version, machine
from nonn.subsets import members

RESULTS = Path(__file__).parent / "results" / "bench.json"

Figures = dict[str, float]


def bench_cli(bundle: Bundle) -> Figures:
    """Start of the command line."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nonn", "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return {"cli_help_s": statistics.median(once() for _ in range(7))}


def bench_node(bundle: Bundle) -> Figures:
    """A node alone: time until it is ready, memory after serving, processor time when idle."""
    ready, rss, idle = [], [], []
    for _ in range(5):
        command = [sys.executable, "-m", "nonn_device", "serve", str(bundle.path), "--student", "0", "--watch-stdin"]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert process.stdout is not None
            json.loads(process.stdout.readline())
            ready.append(time.perf_counter() - start)
            watched = psutil.Process(process.pid)
            before, waited = watched.cpu_times(), 2.0
            time.sleep(waited)
            after = watched.cpu_times()
            idle.append(100 * (after.user + after.system - before.user - before.system) / waited)
            rss.append(watched.memory_info().rss / 1e6)
        finally:
            process.terminate()
            process.communicate()
    return {
        "node_ready_s": statistics.median(ready),
        "node_rss_mb": statistics.median(rss),
        "node_idle_cpu_percent": statistics.median(idle),
    }


def bench_serve(bundle: Bundle) -> Figures:
    """Whole answers over gRPC, client to aggregator to every node and back, one sample a request."""
    sample = np.zeros((1, *bundle.manifest.input.shape), bundle.manifest.input.dtype)
    with LocalCluster(bundle.path) as cluster, Client(cluster.address) as client:
        for _ in range(50):
            client.infer(sample)
        times = []
        for _ in range(500):
            start = time.perf_counter()
            client.infer(sample)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        client.infer_many([sample] * 500, concurrency=16)
        throughput = 500 / (time.perf_counter() - start)
    return {
        "answer_p50_ms": 1e3 * float(np.percentile(times, 50)),
        "answer_p99_ms": 1e3 * float(np.percentile(times, 99)),
        "answers_per_s_16_clients": throughput,
        "bytes_per_answer": float(sum(s.width * np.dtype(s.dtype).itemsize for s in bundle.manifest.students)),
    }


def bench_enumerate(bundle: Bundle) -> Figures:
    """All subsets of twelve devices against fusing each anew, which is timed on every 64th subset."""
    rng, devices, samples, classes, width = np.random.default_rng(0), 12, 10_000, 100, 16
    features = [rng.normal(size=(samples, width)).astype(np.float32) for _ in range(devices)]
    head = ZeroFill(rng.normal(size=(devices * width, classes)), rng.normal(size=classes), [width] * devices)
    labels = rng.integers(0, classes, samples)
    start = time.perf_counter()
    table = enumerate_subsets(head, features, labels)
    fast = time.perf_counter() - start
    masks = list(range(63, 1 << devices, 64))
    start = time.perf_counter()
    for mask in masks:
        logits = head.logits({i: features[i] for i in members(mask)})
        assert (logits.astype(np.float32).argmax(axis=1) == labels).sum() == table.correct[mask]
    anew = (time.perf_counter() - start) * (1 << devices) / len(masks)
    return {"enumerate_n12_s": fast, "enumerate_speedup": anew / fast}


BENCHES: dict[str, Callable[[Bundle], Figures]] = {
    "cli": bench_cli,
    "node": bench_node,
    "serve": bench_serve,
    "enumerate": bench_enumerate,
}


def main() -> None:
    """Runs the benches asked for and writes what they found beside what earlier runs found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", choices=[[], *BENCHES], help="benches to run (default: all)")
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: a digits bundle of one epoch)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.bundle is None:
            from nonn.pipeline import Run

            quick = ["experiment.name=bench", "teacher.epochs=1", "distill.epochs=1", "fusion.passes=1"]
            bundle, _ = Run(load_experiment(None, quick), Path(folder)).execute()
        else:
            bundle = load_bundle(args.bundle)
        figures: dict[str, Any] = {}
        for name in args.only or BENCHES:
            figures |= BENCHES[name](bundle)
    for key, value in figures.items():
        print(f"{key:28} {value:.4g}")
    if not args.only:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rounded = {key: round(value, 6) for key, value in figures.items()}
        write_json(args.out, {**rounded, "machine": machine(), "code_version": code_version(), "date": date})
        print(f"written to {args.out}")


if __name__ == "__main__":
    main()
