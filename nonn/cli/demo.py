"""``nonn demo``: trains on digits, starts eight devices and kills them one by one."""

from __future__ import annotations

import argparse

from nonn.cli.run import add_run_options, show

SUMMARY = "train on digits, launch eight devices, kill them one by one, report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.config import load_experiment

    experiment = load_experiment(None, args.overrides)

    from nonn.cli.console import Terminal
    from nonn.experiment.demo import demo
    from nonn.report.overview import live_table

    result = demo(experiment, runs=args.runs, progress=Terminal(log_time=args.log_time), tensorboard=args.tensorboard)
    show(result.report, live_table, result.bundle.path, as_json=args.json)
    return 0
