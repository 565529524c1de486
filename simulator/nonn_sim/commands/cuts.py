"""``nonn-sim cuts``: minimal sets of devices whose failure misses a level of accuracy."""

from __future__ import annotations

import argparse

from nonn.arguments import existing, path, share, usage

SUMMARY = "minimal sets of devices whose failure makes accuracy miss a level; fault tree, block diagram"

_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=existing, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--level", type=share, required=True, metavar="ACCURACY", help="level of accuracy, 0 to 1")
    parser.add_argument(
        "--law", metavar="TEXT", help="failure law, as in enumerate (default: independent, p_fail of the experiment)"
    )
    parser.add_argument(
        "--fault-tree", type=path, metavar="FILE", help="write a fault tree (Open-PSA XML); needs independent devices"
    )
    parser.add_argument(
        "--block-diagram", type=path, metavar="FILE", help="write a reliability block diagram (Graphviz' DOT)"
    )
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Computes and prints."""
    import dataclasses
    import json

    from nonn.bundle import load_bundle
    from nonn.reliability.cuts import cut_sets
    from nonn.reliability.laws import parse_law
    from nonn.reliability.subsets import independent_law
    from nonn.report.table import Column, Table, TextColumn, as_text, percent
    from nonn_sim.block_diagram import block_diagram
    from nonn_sim.fault_tree import fault_tree
    from nonn_sim.output import write_output

    bundle = load_bundle(args.bundle)
    with usage():
        law = parse_law(independent_law(bundle.p_fail) if args.law is None else args.law, bundle.num_devices)
    found = cut_sets(bundle.table, law.probabilities(), args.level)
    if args.fault_tree:
        write_output(args.fault_tree, fault_tree(found, law))
    if args.block_diagram:
        write_output(args.block_diagram, block_diagram(found, law))
    if args.json:
        print(json.dumps({"schema": 1, "bundle": bundle.hash, "law": law.text, **dataclasses.asdict(found)}))
        return 0
    sizes = [len(cut.devices) for cut in found.cuts]
    counts = ", ".join(f"{sizes.count(size)} of {size} devices" for size in sorted(set(sizes)))
    print(
        f"accuracy below {percent(args.level)}: {len(sizes)} minimal cut sets ({counts or 'the level is never missed'})"
    )
    print(f"failures {law.text}: missed with probability {found.missed:.6g}", end="")
    print("" if found.coherent else f"; some cut has failed: {found.bound:.6g}, since some further failures restore it")
    shown = [
        {"devices": " ".join(map(str, cut.devices)) or "none", "probability": cut.probability}
        for cut in found.cuts[:_SHOWN]
    ]
    columns = (TextColumn("likeliest cuts", "devices", str), Column("all failed", "probability", "{:.4g}".format))
    if shown:
        print(f"\n{as_text(Table(columns, shown))}")
    return 0
