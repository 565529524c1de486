"""``nonn-sim liars``: accuracy of a bundle when devices send wrong features."""

from __future__ import annotations

import argparse

from nonn.arguments import count, existing, usage, whole

SUMMARY = "accuracy when devices send wrong features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=existing, metavar="BUNDLE", help="bundle with recorded features")
    parser.add_argument("--lie", action="append", default=[], metavar="NAME", help="a lie; repeat it (default: all)")
    parser.add_argument(
        "--liars", type=count, nargs="+", default=[1, 2], metavar="N", help="devices that lie (default: 1 2)"
    )
    parser.add_argument(
        "--requests",
        type=count,
        default=2000,
        metavar="N",
        help="requests for each set of liars (default: %(default)s)",
    )
    parser.add_argument(
        "--sets", type=count, default=4, metavar="N", help="sets of liars, drawn at random (default: %(default)s)"
    )
    parser.add_argument(
        "--honest", type=count, default=20_000, metavar="N", help="requests without a lie (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="seed of lies, requests and sets (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    import dataclasses
    import json

    from nonn.bundle import load_bundle
    from nonn.provenance import code_version, machine
    from nonn_sim.liars import measure_honest, measure_lie
    from nonn_sim.lies import Recording, check_lies

    with usage():
        lies = check_lies(args.lie)
    recording = Recording(load_bundle(args.bundle), args.seed)
    honest = measure_honest(recording, args.honest)
    rows = [
        measure_lie(recording, lie, liars, requests=args.requests, sets=args.sets)
        for liars in args.liars
        for lie in lies
    ]
    if args.json:
        config = {name: getattr(args, name) for name in ("requests", "sets", "honest", "seed")}
        provenance = {"config": config, "machine": machine(), "code_version": code_version()}
        lied = [dataclasses.asdict(row) for row in rows]
        print(json.dumps({"honest": dataclasses.asdict(honest), "lies": lied, **provenance}))
    else:
        from nonn_sim.tables import print_liars

        print_liars(honest, rows)
    return 0
