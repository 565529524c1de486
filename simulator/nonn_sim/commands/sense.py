"""``nonn-sim sense``: nodes that sense, in virtual time, with ``--live`` also as processes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from nonn.arguments import existing, seconds, whole

LEAST, WINDOWS, SPEED = 3, 120, 10.0  # windows that a live run needs; how many it has, and how fast they are replayed

SUMMARY = "nodes that sense: wrong clocks, lost windows, failing sensors, batteries and duty cycles"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("scenario", type=existing, metavar="SCENARIO", help="sensing scenario (TOML)")
    parser.add_argument("--bundle", type=existing, required=True, metavar="BUNDLE", help="bundle that the units run")
    parser.add_argument(
        "--live", action="store_true", help="also replay recordings through processes, one per unit, without batteries"
    )
    parser.add_argument(
        "--windows", type=whole(LEAST), metavar="N", help=f"--live: windows to replay (default: {WINDOWS})"
    )
    parser.add_argument(
        "--speed",
        type=seconds,
        metavar="X",
        help=f"--live: times the speed of life (default: {SPEED:g})",
    )
    parser.add_argument(
        "--inputs",
        type=existing,
        metavar="FILE",
        help="--live: the test split, from an experiment file (.toml) or an .npz with inputs [n, ...] and labels [n] "
        "(default: the data of the bundle's training)",
    )
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs and prints."""
    import json

    from nonn.bundle import load_bundle
    from nonn.errors import UsageError
    from nonn_sim.sensing import simulate_sensing
    from nonn_sim.sensing_scenario import load_sensing_scenario

    for option in ("windows", "speed", "inputs"):
        if getattr(args, option) is not None and not args.live:
            raise UsageError(f"--{option} requires --live")
    scenario, bundle = load_sensing_scenario(args.scenario), load_bundle(args.bundle)
    if args.live:
        from nonn.cli.console import say
        from nonn_sim.samples import own_samples, samples_of
        from nonn_sim.sensing_live import run_live

        samples = samples_of(args.inputs, bundle) if args.inputs else own_samples(bundle)
        result = run_live(scenario, bundle, samples, args.windows or WINDOWS, args.speed or SPEED, say)
    else:
        result = simulate_sensing(scenario, bundle)
    if args.json:
        print(json.dumps(result))
        return 0
    _print(result["rows"], result.get("live", ()))
    return 0


def _print(rows: Sequence[dict[str, Any]], live: Sequence[dict[str, Any]]) -> None:
    """Prints the tables."""
    from nonn.report.table import Column, IntervalColumn, Table, TextColumn, as_text, percent, show_interval

    def hours(value: float) -> str:
        return f"{value:.1f}"

    columns = (
        TextColumn("policy", "policy", str),
        Column("answers", "answers"),
        Column("missing", "answers_missing"),
        Column("false masks", "masks_with_a_unit_that_did_not_sense"),
        Column("accuracy", "accuracy", percent),
        IntervalColumn("95 %", "accuracy_interval", show_interval(percent)),
        Column("table", "table", percent),
        IntervalColumn("95 %", "table_interval", show_interval(percent)),
        Column("units", "units_mean", hours),
        Column("bytes an answer", "bytes_per_answer", "{:.0f}".format),
        Column("wake-ups an hour", "wake_ups_per_unit_hour", "{:.0f}".format),
        Column("first empty, h", "first_empty_h", hours),
        Column("below the goal, h", "below_goal_h", hours),
    )
    print(as_text(Table(columns, rows)))
    if live:
        print("\nThe same with processes; bytes without probes of the clocks:")
        measured = (
            *columns[:1],
            Column("windows", "windows"),
            *columns[2:9],
            Column("bytes an answer", "bytes_per_answer", "{:.0f}".format),
            Column("delay p95, ms", "delay_p95_ms", "{:.0f}".format),
            Column("as offline", "equal_to_offline", percent),
        )
        print(as_text(Table(measured, live)))
