"""``nonn runs list | diff | keep | clean``: what finished runs have left, and what of it may be removed."""

from __future__ import annotations

import argparse
from pathlib import Path

from nonn.arguments import path

SUMMARY = "list, compare, keep and clean the results of runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument(
        "--runs", type=path, default=Path("runs"), metavar="FOLDER", help="folder of all runs (default: runs)"
    )
    listed = actions.add_parser("list", parents=[runs], help="every run with its bundles, accuracy and size")
    listed.add_argument("--json", action="store_true", help="print a JSON list")
    diff = actions.add_parser("diff", parents=[runs], help="options and accuracies in which two bundles differ")
    for which in ("first", "second"):
        diff.add_argument(which, metavar="BUNDLE", help="NAME of a run, NAME@HASH of an earlier bundle, or a folder")
    keep = actions.add_parser("keep", parents=[runs], help="protect a bundle from nonn runs clean")
    keep.add_argument("bundle", metavar="NAME[@HASH]", help="the last or an earlier bundle of a run")
    clean = actions.add_parser("clean", parents=[runs], help="remove earlier bundles and stages with other inputs")
    clean.add_argument("name", nargs="?", default="", metavar="NAME", help="a run (default: all)")
    clean.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    actions = {"list": _list, "diff": _diff, "keep": _keep, "clean": _clean}
    actions[args.action](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    import json

    from nonn.documents.shown import percent
    from nonn.experiment.kept import DIGITS, list_runs

    rows = []
    for found in list_runs(args.runs):
        accuracies = None if found.bundle is None else [row.mean for row in found.bundle.accuracies.by_failures()]
        rows.append(
            {
                "name": found.name,
                "bundle": None if found.bundle is None else found.bundle.hash,
                "accuracy": None if accuracies is None else accuracies[0],
                "accuracy_half_failed": None if accuracies is None else accuracies[len(accuracies) // 2],
                "unfinished": [stage for stage, done in found.stages.items() if not done],
                "earlier": list(found.earlier),
                "bytes": found.bytes,
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print(f"no runs in {args.runs}; nonn run makes one")
        return
    from nonn.report.table import Column, Table, TextColumn, as_text

    columns = (
        TextColumn("run", "name", str),
        TextColumn("bundle", "bundle", lambda value: value[:DIGITS]),
        Column("0 failed", "accuracy", percent),
        Column("half failed", "accuracy_half_failed", percent),
        TextColumn("earlier bundles", "earlier", lambda value: " ".join(hash_[:DIGITS] for hash_ in value) or "–"),
        Column("size, MB", "bytes", lambda value: f"{value / 1e6:.1f}"),
        TextColumn("unfinished stages", "unfinished", lambda value: " ".join(value) or "–"),
    )
    print(as_text(Table(columns, rows)))


def _diff(args: argparse.Namespace) -> None:
    from nonn.documents.shown import percent
    from nonn.experiment.kept import DIGITS, differences, find_bundle
    from nonn.report.table import Column, Table, TextColumn, as_text

    bundles = [find_bundle(args.runs, name) for name in (args.first, args.second)]
    titles = [f"{bundle.manifest.experiment}@{bundle.hash[:DIGITS]}" for bundle in bundles]
    changed, sides = differences(*bundles), ("first", "second")
    rows: list[object] = [{"key": key, "first": pair[0], "second": pair[1]} for key, pair in changed.items()]
    options = (TextColumn("option", "key", str), *(TextColumn(t, k, str) for t, k in zip(titles, sides, strict=True)))
    print(as_text(Table(options, rows)) if rows else "the same options")
    if bundles[0].manifest.data.get("fingerprint") != bundles[1].manifest.data.get("fingerprint"):
        print("\nThe data differ: the accuracies are of different samples.")
    levels = [bundle.accuracies.by_failures() for bundle in bundles]
    rows = [{"failed": a.failed, "first": a.mean, "second": b.mean} for a, b in zip(*levels, strict=False)]
    accuracies = (Column("failed", "failed"), *(Column(t, k, percent) for t, k in zip(titles, sides, strict=True)))
    print(f"\n{as_text(Table(accuracies, rows))}")


def _keep(args: argparse.Namespace) -> None:
    from nonn.experiment.kept import DIGITS, keep

    print(f"nonn runs clean leaves {args.bundle.partition('@')[0]}@{keep(args.runs, args.bundle).hash[:DIGITS]} alone")


def _clean(args: argparse.Namespace) -> None:
    from nonn.experiment.kept import clean, remove

    found = list(clean(args.runs, args.name))
    for folder, size in found:
        if args.yes:
            remove(folder)
        print(f"{size / 1e6:8.1f} MB  {folder}")
    total = f"{sum(size for _, size in found) / 1e6:.1f} MB"
    if not found:
        print("nothing to remove")
    else:
        print(f"{total} removed" if args.yes else f"{total} can be removed; add --yes to do it")
