"""``nonn-sim replay``: replays recorded faults in virtual time."""

from __future__ import annotations

import argparse

from nonn.arguments import existing

SUMMARY = "replay recorded faults in virtual time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "log", type=existing, metavar="LOG", help=".csv or .jsonl with time_s, node and event of each fault, up or down"
    )
    parser.add_argument("--bundle", type=existing, required=True, metavar="BUNDLE", help="bundle that the devices run")
    parser.add_argument(
        "--scenario",
        type=existing,
        metavar="FILE",
        help="devices, links, load and length; its own faults are ignored (default: 10 requests per second until the "
        "last event)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Replays and prints."""
    import json

    from nonn.bundle import load_bundle
    from nonn_sim.replay import replay

    result = replay(args.log, load_bundle(args.bundle), args.scenario)
    if args.json:
        print(json.dumps(result))
    else:
        from nonn_sim.tables import print_rows

        print_rows(result)
    return 0
