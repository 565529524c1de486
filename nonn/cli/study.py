"""``nonn study EXPERIMENT.toml``: compares the experiment with published methods at equal budget."""

from __future__ import annotations

import argparse
import json

from nonn.cli import run as run_command
from nonn.jobs import BACKENDS

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "compare the experiment with published methods at equal budget; resumes where it stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    run_command.add_arguments(parser)
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="local",
        help="local: one row after another in this process; ray: rows, seeds and folds at the same time on a Ray "
        "cluster (default: local)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.config import load_experiment

    experiment = load_experiment(args.experiment, args.overrides)

    from nonn.cli.console import Terminal
    from nonn.documents import to_json
    from nonn.experiment.study import study as run_study
    from nonn.report.study import study_text

    progress = Terminal(log_time=args.log_time)
    study = run_study(experiment, runs=args.runs, progress=progress, tensorboard=args.tensorboard, backend=args.backend)
    if args.json:
        print(json.dumps(to_json(study), indent=2, ensure_ascii=False))
        return 0
    print(study_text(study))
    print(f"study    {args.runs / experiment.experiment.name / 'study' / 'study.json'}, .md, .csv and .svg next to it")
    return 0
