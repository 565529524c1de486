"""``nonn partition EXPERIMENT.toml``: partitions the teacher's filters and prints measures of the partition."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.arguments import existing
from nonn.cli.run import add_run_options

if TYPE_CHECKING:
    from nonn.experiment.training import Cut
    from nonn.partition.compare import PartitionComparison

SUMMARY = "train the teacher if needed, partition its filters, print measures of the partition"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("experiment", type=existing, metavar="EXPERIMENT.toml", help="experiment file; see examples/")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare every method on every filter graph; writes compare.json and compare.svg next to the partition",
    )
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.config import load_experiment

    experiment = load_experiment(args.experiment, args.overrides)

    from nonn.cli.console import Terminal
    from nonn.experiment.comparison import compare_partitioners, cut
    from nonn.experiment.stages import exclusive
    from nonn.experiment.workspace import Workspace

    space = Workspace(experiment, args.runs, progress=Terminal(log_time=args.log_time), tensorboard=args.tensorboard)
    with exclusive(space.root):
        if args.compare:
            _show_comparison(*compare_partitioners(space), as_json=args.json)
        else:
            _show_cut(cut(space), as_json=args.json)
    return 0


def _show_cut(cut: Cut, *, as_json: bool) -> None:
    """Prints partition.json only, or its measures and its path."""
    file = cut.stage.folder / "partition.json"
    if as_json:
        print(json.dumps(json.loads(file.read_text()), indent=2))
        return
    for key, value in cut.measures.items():
        print(f"{key.replace('_', ' '):18} {f'{value:.4g}' if isinstance(value, float) else value}")
    print(f"{'filters':18} {file}")


def _show_comparison(comparison: PartitionComparison, folder: Path, *, as_json: bool) -> None:
    """Prints compare.json only, or its table, the methods that failed and its path."""
    from nonn.documents import to_json
    from nonn.report.comparison import comparison_table
    from nonn.report.table import as_text

    if as_json:
        print(json.dumps(to_json(comparison), indent=2, ensure_ascii=False))
        return
    print(as_text(comparison_table(comparison.rows)))
    for row in comparison.rows:
        if row.error:
            print(f"{row.method} on {row.graph}: {row.error}")
    print(f"\ncomparison {folder / 'compare.json'}\nfigure     {folder / 'compare.svg'}")
