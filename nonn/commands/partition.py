"""``nonn partition EXPERIMENT.toml``: cuts the teacher's filters and says how good the cut is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nonn.commands.run import add_run_options

SUMMARY = "train the teacher if need be, cut its filters into parts, print how good the cut is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml", help="experiment file; see examples/")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.config import load_experiment

    experiment = load_experiment(args.experiment, args.overrides)

    from nonn.pipeline import Run
    from nonn.stages import exclusive

    run = Run(experiment, args.runs)
    with exclusive(run.root):
        run.check()
        _, _, stage = run.partition()
    values = json.loads((stage.folder / "partition.json").read_text())
    if args.json:
        print(json.dumps(values, indent=2))
        return 0
    for key, value in values["measures"].items():
        print(
            f"{key.replace('_', ' '):18} {value:.4g}"
            if isinstance(value, float)
            else f"{key.replace('_', ' '):18} {value}"
        )
    print(f"{'filters':18} {stage.folder / 'partition.json'}")
    return 0
