"""``nonn-sim sweep``: figures over values of a scenario's keys or of a failure law."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from nonn.arguments import count, existing, path, usage
from nonn_sim.commands.options import add_backend, add_levels

SUMMARY = "figures over values of a scenario's keys or of a failure law: a table, CSV, a plot, and what matters most"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=existing, metavar="BUNDLE", help="folder of the bundle")
    swept = parser.add_mutually_exclusive_group(required=True)
    swept.add_argument("--scenario", type=existing, metavar="FILE", help="scenario to simulate at every point")
    swept.add_argument("--law", metavar="TEXT", help="failure law with names in braces: 'independent p={p}'")
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="KEY=V1,V2",
        help="values of a key of the scenario (nodes.mtbf_s), of a name in the law, or of 'devices', the number of "
        "devices in use with --law; repeat it for a grid",
    )
    parser.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="the first value of each --vary is the base and every other value is tried alone: what matters most",
    )
    add_levels(
        parser,
        "--law: availability of this accuracy",
    )
    parser.add_argument(
        "--figure", metavar="NAME", help="figure of --svg and --one-at-a-time (default: accuracy, or expected)"
    )
    parser.add_argument(
        "--seeds", type=count, default=1, metavar="K", help="--scenario: seeds of each point (default: 1)"
    )
    add_backend(parser)
    parser.add_argument("--csv", type=path, metavar="FILE", help="write a line for every point")
    parser.add_argument(
        "--svg",
        type=path,
        metavar="FILE",
        help="plot the figure against the first --vary; with --one-at-a-time as a tornado",
    )
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Sweeps and prints."""
    import json

    from nonn.bundle import load_bundle
    from nonn.errors import UsageError
    from nonn_sim.output import write_output
    from nonn_sim.sweep import parse_axis, points, sweep_law, sweep_scenario, sweep_svg, swings, tornado_svg

    if args.law and (args.seeds != 1 or args.backend != "local"):
        raise UsageError("--law is exact: leave out --seeds and --backend")
    if args.scenario and args.level:
        raise UsageError("--level goes with --law; a scenario has accuracy and availability of its answers")
    with usage():
        axes = [parse_axis(text) for text in args.vary]
        grid = points(axes, args.one_at_a_time)
    bundle = load_bundle(args.bundle)
    if args.law:
        with usage():
            rows = sweep_law(args.law, bundle.evidence, grid, args.level)
    else:
        rows = sweep_scenario(args.scenario, bundle, grid, seeds=args.seeds, backend=args.backend)
    figure = args.figure or ("expected" if args.law else "accuracy")
    result: dict[str, Any] = {"schema": 1, "bundle": bundle.hash, "points": rows}
    with usage():
        if args.one_at_a_time:
            result["swings"] = swings(axes, rows, figure)
        plot = ""
        if args.svg:
            plot = tornado_svg(result["swings"], figure) if args.one_at_a_time else sweep_svg(axes, rows, figure)
    if args.csv:
        write_output(args.csv, _csv(rows))
    if args.svg:
        write_output(args.svg, plot)
    print(json.dumps(_finite(result)) if args.json else _text(rows, result.get("swings"), figure))
    return 0


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """A line for every point."""
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    """JSON has no infinity: never is null."""
    import math

    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(rows: Sequence[dict[str, Any]], ranges: Sequence[dict[str, Any]] | None, figure: str) -> str:
    """Tables for a terminal."""
    from nonn.report.table import Column, Table, TextColumn, as_text

    def number(value: Any) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    blocks = [as_text(Table(tuple(Column(key, key, number) for key in rows[0]), rows))]
    if ranges is not None:
        columns: list[Column] = [TextColumn("what matters most", "key", str)]
        columns += [Column(name, name, number) for name in ("base", "low", "high", "range")]
        blocks.append(f"{figure}:\n{as_text(Table(tuple(columns), ranges))}")
    return "\n\n".join(blocks)
