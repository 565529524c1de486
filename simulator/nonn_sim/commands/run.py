"""``nonn-sim run``: a scenario in virtual time, and optionally on a real cluster."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nonn.arguments import count, existing, path
from nonn_sim.commands.options import add_backend, add_levels

if TYPE_CHECKING:
    from nonn.bundle import Bundle
    from nonn_sim.scenario import Scenario

SUMMARY = "run a scenario of failing devices in virtual time, with --live also on a real cluster"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("scenario", type=existing, metavar="SCENARIO", help="scenario file (TOML)")
    parser.add_argument("--bundle", type=existing, required=True, metavar="BUNDLE", help="bundle that the devices run")
    parser.add_argument("--live", action="store_true", help="also run a real cluster of processes, and compare")
    parser.add_argument(
        "--inputs",
        type=existing,
        metavar="FILE",
        help="with --live: the requests' samples, from an experiment file (.toml: its test split) or an .npz with "
        "inputs [n, ...] and labels [n]; without it inputs are noise, and accuracy is that of the answering subsets in "
        "the bundle's table",
    )
    parser.add_argument(
        "--seeds", type=count, default=1, metavar="K", help="runs that differ by their seed (default: 1)"
    )
    add_backend(parser)
    parser.add_argument("--alone", action="store_true", help="without rows for the alternatives")
    add_levels(
        parser,
        "share of requests whose answer has at least this accuracy, and when it is first missed; repeat it "
        "(default: the scenario's levels)",
    )
    parser.add_argument(
        "--record", type=path, metavar="FILE", help="write the faults of the first run (.csv or .jsonl)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Runs and prints."""
    import json
    from dataclasses import replace

    from nonn.bundle import load_bundle
    from nonn.errors import UsageError
    from nonn_sim.faults import write_log
    from nonn_sim.scenario_file import load_scenario

    if args.live and (args.seeds != 1 or args.backend != "local"):
        raise UsageError("--live is one run on this machine: leave out --seeds and --backend")
    if args.inputs and not args.live:
        raise UsageError("--inputs: virtual time uses no inputs, accuracy is that of the bundle's table; add --live")
    scenario, bundle = load_scenario(args.scenario), load_bundle(args.bundle)
    if args.level:
        scenario = replace(scenario, scenario=replace(scenario.scenario, levels=tuple(args.level)))
    scenario.devices(bundle.num_devices)
    if args.live:
        result = _live(scenario, bundle, args)
    else:
        from nonn_sim.simulate import simulate, simulate_once

        result = simulate(scenario, bundle, seeds=args.seeds, backend=args.backend, compare=not args.alone)
        if args.record:
            write_log(args.record, simulate_once(scenario, bundle)[1].events)
    if args.json:
        print(json.dumps(result))
    else:
        from nonn_sim.tables import print_live, print_rows

        (print_live if args.live else print_rows)(result)
    return 0


def _live(scenario: Scenario, bundle: Bundle, args: argparse.Namespace) -> dict[str, Any]:
    """Runs live and writes the actual faults to the log."""
    from nonn.cli.console import say
    from nonn_sim.faults import write_log
    from nonn_sim.live import check_live, run_live
    from nonn_sim.samples import noise, samples_of

    check_live(scenario, bundle.num_devices)
    samples = samples_of(args.inputs, bundle) if args.inputs else noise(bundle)
    result, happened = run_live(scenario, bundle, samples, say)
    if args.record:
        write_log(args.record, happened)
    return result
