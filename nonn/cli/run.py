"""``nonn run EXPERIMENT.toml``: runs every unfinished stage of an experiment."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.arguments import existing, path

if TYPE_CHECKING:
    from nonn.report.document import Report
    from nonn.report.table import Table

SUMMARY = "train, partition, distil, bundle and report an experiment; resumes where it stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("experiment", type=existing, metavar="EXPERIMENT.toml", help="experiment file; see examples/")
    add_run_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command that runs an experiment."""
    add_overrides(parser)
    parser.add_argument(
        "--runs", type=path, default=Path("runs"), metavar="FOLDER", help="folder of all runs (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")
    parser.add_argument("--log-time", action="store_true", help="begin every line of progress with date and time")
    parser.add_argument("--tensorboard", action="store_true", help="write the losses of each training for TensorBoard")
    parser.set_defaults(resumable=True)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds ``--set``, also for a command that only reads an experiment."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override a value, for example distill.epochs=3; may be given again",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.config import load_experiment

    experiment = load_experiment(args.experiment, args.overrides)

    from nonn.cli.console import Terminal
    from nonn.experiment.run import run as run_experiment
    from nonn.report.overview import failure_table

    result = run_experiment(
        experiment, runs=args.runs, progress=Terminal(log_time=args.log_time), tensorboard=args.tensorboard
    )
    show(result.report, failure_table, result.bundle.path, as_json=args.json)
    return 0


def show(report: Report, table: Callable[[Report], Table], bundle: Path, *, as_json: bool) -> None:
    """Prints report.json only, or its headline, one of its tables and the paths of the results."""
    from nonn.documents import to_json
    from nonn.report.sentences import headline
    from nonn.report.table import as_text

    if as_json:
        print(json.dumps(to_json(report), indent=2, ensure_ascii=False))
        return
    print(f"\n{headline(report)}.\n\n{as_text(table(report))}\n")
    print(f"report   {bundle.parent / 'report' / 'report.html'}")
    print(f"bundle   {bundle}   (nonn up {bundle})")
