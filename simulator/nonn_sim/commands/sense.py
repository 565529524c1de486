"""``nonn-sim sense``: nodes that measure themselves, in virtual time."""

from __future__ import annotations

import argparse

from nonn.arguments import existing

SUMMARY = "nodes that sense: wrong clocks, lost windows, failing sensors, batteries and duty cycles"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("scenario", type=existing, metavar="SCENARIO", help="sensing scenario (TOML)")
    parser.add_argument("--bundle", type=existing, required=True, metavar="BUNDLE", help="bundle that the units run")
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs and prints."""
    import json

    from nonn.bundle import load_bundle
    from nonn.report.table import Column, Table, TextColumn, as_text, percent
    from nonn_sim.sensing import simulate_sensing
    from nonn_sim.sensing_scenario import load_sensing_scenario

    result = simulate_sensing(load_sensing_scenario(args.scenario), load_bundle(args.bundle))
    if args.json:
        print(json.dumps(result))
        return 0

    def hours(value: float) -> str:
        return f"{value:.1f}"

    columns = (
        TextColumn("policy", "policy", str),
        Column("answers", "answers"),
        Column("missing", "answers_missing"),
        Column("accuracy", "accuracy", percent),
        Column("table", "table", percent),
        Column("units", "units_mean", hours),
        Column("bytes an answer", "bytes_per_answer", "{:.0f}".format),
        Column("wake-ups an hour", "wake_ups_per_unit_hour", "{:.0f}".format),
        Column("first empty, h", "first_empty_h", hours),
        Column("below the goal, h", "below_goal_h", hours),
    )
    print(as_text(Table(columns, result["rows"])))
    return 0
