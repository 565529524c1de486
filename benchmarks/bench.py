"""``make bench``: measures the cost of nonn on this machine in one run.

Writes ``benchmarks/results/bench.json``: flat keys with units in the name, with machine, versions, code version and
date. ``python benchmarks/bench.py busy --out benchmarks/results/busy.json`` writes those of one benchmark. Machines
are noisy: times are medians, and things that are compared are interleaved and reported as a ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from busy import bench_busy
from device import bench_device, bench_int8
from distill import bench_distill

from nonn.bench.serve import Load, bench_serve
from nonn.bundle import Bundle, load_bundle
from nonn.config import load_experiment
from nonn.files import write_json
from nonn.provenance import code_version, machine

RESULTS = Path(__file__).parent / "results" / "bench.json"

Figures = dict[str, float]


def bench_cli(bundle: Bundle) -> Figures:
    """Start time of the command line."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nonn", "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return {"cli_help_s": statistics.median(once() for _ in range(7))}


def bench_serving(bundle: Bundle) -> Figures:
    """Complete answers over gRPC compared with a bare fan-out of the same bytes; eight devices, students do nothing."""
    with tempfile.TemporaryDirectory() as folder:
        return bench_serve(Path(folder), Load())


def bench_enumerate(bundle: Bundle) -> Figures:
    """All subsets, every head, on one core; in a separate process, since BLAS reads its number of threads at start."""
    command = [sys.executable, str(Path(__file__).with_name("enumeration.py")), "--sixteen"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def bench_simulate(bundle: Bundle) -> Figures:
    """A million requests in virtual time: the shipped cluster at its load, on one core.

    In a separate process: in one that has much else in memory, the garbage collector would take most of the time.
    """
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return {"sim_million_s": process.apply(_simulate_million, (bundle.path,))}


def _simulate_million(bundle: Path) -> float:
    """Seconds of processor time."""
    from nonn_sim.scenario_file import load_scenario
    from nonn_sim.simulate import simulate_once

    scenario = load_scenario(Path(__file__).parent.parent / "simulator" / "scenarios" / "pi-cluster.toml")
    asked = dataclasses.replace(scenario.scenario, duration_s=0.0, window_s=0.0, requests=1_000_000)
    start = time.process_time()
    figures, _ = simulate_once(dataclasses.replace(scenario, scenario=asked), load_bundle(bundle))
    seconds = time.process_time() - start
    assert figures["requests"] == 1_000_000
    return seconds


BENCHES: dict[str, Callable[[Bundle], Figures]] = {
    "cli": bench_cli,
    "device": bench_device,
    "int8": bench_int8,
    "distill": lambda _: bench_distill(),
    "busy": lambda _: bench_busy(),
    "serve": bench_serving,
    "enumerate": bench_enumerate,
    "simulate": bench_simulate,
}


def main() -> None:
    """Runs the chosen benchmarks; writes the file only after all of them, since it describes one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", choices=[[], *BENCHES], help="benchmarks to run (default: all)")
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: a digits bundle of one epoch)")
    parser.add_argument("--out", type=Path, help="file (default: bench.json for all benchmarks, none for some)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.bundle is None:
            from nonn.experiment.run import run

            quick = ["experiment.name=bench", "teacher.epochs=1", "distill.epochs=1", "fusion.passes=1"]
            bundle = run(load_experiment(None, quick), runs=Path(folder)).bundle
        else:
            bundle = load_bundle(args.bundle)
        figures: dict[str, Any] = {}
        for name in args.only or BENCHES:
            figures |= BENCHES[name](bundle)
    for key, value in figures.items():
        print(f"{key:28} {value:.4g}")
    if out := args.out or (None if args.only else RESULTS):
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rounded = {key: round(value, 6) for key, value in figures.items()}
        write_json(out, {**rounded, "machine": machine(), "code_version": code_version(), "date": date})
        print(f"written to {out}")


if __name__ == "__main__":
    main()
