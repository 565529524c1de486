"""``nonn study EXPERIMENT.toml``: compares the experiment with published methods at equal budget."""

from __future__ import annotations

import argparse
import json

from nonn.cli.run import add_arguments

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "compare the experiment with published methods at equal budget; resumes where it stopped"


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.config import load_experiment

    experiment = load_experiment(args.experiment, args.overrides)

    from nonn.cli.console import Terminal
    from nonn.documents import to_json
    from nonn.experiment.study import study as run_study
    from nonn.report.study import study_text

    study = run_study(
        experiment, runs=args.runs, progress=Terminal(log_time=args.log_time), tensorboard=args.tensorboard
    )
    if args.json:
        print(json.dumps(to_json(study), indent=2, ensure_ascii=False))
        return 0
    print(study_text(study))
    print(f"study    {args.runs / experiment.experiment.name / 'study' / 'study.json'}, .md, .csv and .svg next to it")
    return 0
