"""``nonn bench``: measures the cost of serving on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "measure the cost of serving, compared with a bare gRPC fan-out of the same bytes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("what", choices=["serve"], help="what to measure")
    parser.add_argument("--devices", type=int, default=8, metavar="N", help="device nodes (default: %(default)s)")
    parser.add_argument(
        "--requests",
        type=int,
        default=2000,
        metavar="N",
        help="requests to each system, in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--clients", type=int, default=64, metavar="N", help="concurrent clients, for throughput (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="throughput rounds (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="time per aggregator and round (default: %(default)s)"
    )
    parser.add_argument(
        "--ray", type=Path, metavar="PYTHON", help="interpreter with ray[serve]: also compare with Ray Serve"
    )
    parser.add_argument("--json", action="store_true", help="print only JSON: figures, machine and date")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    import datetime
    import json
    import os
    import tempfile

    # The benchmark ends processes, and gRPC would log a line for each.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from nonn.bench.serve import Load, bench_serve
    from nonn.cli.console import say
    from nonn.provenance import code_version, machine

    load = Load(
        num_devices=args.devices,
        requests=args.requests,
        clients=args.clients,
        rounds=args.rounds,
        round_s=args.seconds,
        ray=args.ray,
    )
    with tempfile.TemporaryDirectory(prefix="nonn-bench-") as folder:
        figures = bench_serve(Path(folder), load, say)
    if args.json:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        where = {"machine": machine(), "code_version": code_version(), "date": date}
        counts = {"devices": args.devices, "requests": args.requests, "clients": args.clients, "rounds": args.rounds}
        rounded = {key: round(value, 4) for key, value in figures.items()}
        print(json.dumps({**rounded, **counts, **where}, indent=2))
    else:
        for line in _table(figures):
            print(line)
    return 0


def _table(figures: dict[str, float]) -> list[str]:
    """The figures as a text table."""
    lines = [f"{'one client, one sample a request':34} {'p50':>9} {'p99':>9}"]
    names = {
        "floor": "bare gRPC fan-out",
        "nonn": "nonn",
        "untested": "nonn without test for liars",
        "ray": "Ray Serve",
    }
    for key, name in names.items():
        if f"serve_{key}_p50_ms" in figures:
            p50, p99 = figures[f"serve_{key}_p50_ms"], figures[f"serve_{key}_p99_ms"]
            lines.append(f"{name:34} {p50:6.2f} ms {p99:6.2f} ms")
    p50, p99 = figures["serve_p50_ratio"], figures["serve_p99_ratio"]
    lines.append(f"{'nonn ÷ bare fan-out':34} {p50:8.2f}x {p99:8.2f}x")
    lines.append(f"{'nonn ÷ without test for liars':34} {figures['serve_test_p50_ratio']:8.2f}x")
    if "serve_ray_p50_ratio" in figures:
        lines.append(f"{'Ray Serve ÷ nonn':34} {figures['serve_ray_p50_ratio']:8.2f}x")
    batched, unbatched = figures["serve_batched_per_s"], figures["serve_unbatched_per_s"]
    lines += [
        "",
        f"{'many clients, answers per second':34} {'batched':>9} {'alone':>9} {'speed-up':>9}",
        f"{'nonn':34} {batched:9.0f} {unbatched:9.0f} {figures['serve_batched_speedup']:8.2f}x",
    ]
    return lines
