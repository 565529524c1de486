"""``nonn study EXPERIMENT.toml``: the experiment beside the published methods, at equal budget."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonn.commands.run import add_run_options

SUMMARY = "compare the experiment with the published methods at equal budget; goes on where it stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml", help="experiment file; see examples/")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.config import load_experiment

    experiment = load_experiment(args.experiment, args.overrides)

    from nonn.study import run_study

    study = run_study(experiment, args.runs)
    if args.json:
        print(json.dumps(study, indent=2, ensure_ascii=False))
        return 0
    print(study_text(study))
    print(
        f"study    {args.runs / experiment.experiment.name / 'study' / 'study.json'}, study.csv and study.svg beside it"
    )
    return 0


def study_text(study: Mapping[str, Any]) -> str:
    """The study as a short table: every method with the head that it serves and with its best one at half failed."""
    from nonn.report.table import Column, Table, as_text, percent

    def text(value: str) -> str:
        return value

    half = len(study["rows"][0]["sd"]) // 2
    rows = []
    for row in study["rows"]:
        lines = row["accuracy_by_failures"]
        rows.append(
            {
                "method": row["title"] if row["own"] else "",
                "head": row["head"] + (" *" if row["own"] else ""),
                "params": row["params"],
                "bytes": row["bytes_per_answer"],
                "none": lines[0]["mean"],
                "half": lines[half]["mean"],
                "worst": lines[half]["worst"],
                "last": lines[-1]["mean"],
                "ece": lines[half]["ece"],
            }
        )
    columns = (
        Column("method", "method", text),
        Column("head", "head", text),
        Column("params", "params"),
        Column("bytes/answer", "bytes"),
        Column("0 failed", "none", percent),
        Column(f"{half} failed", "half", percent),
        Column("worst", "worst", percent),
        Column(f"{len(study['rows'][0]['sd']) - 1} failed", "last", percent),
        Column(f"ECE at {half}", "ece", percent),
    )
    seeds = ", ".join(map(str, study["seeds"]))
    teacher = f"teacher {study['teacher']['model']}: {percent(study['teacher']['accuracy'])}"
    return f"\n{teacher}; seeds {seeds}; * the head that the method serves\n\n{as_text(Table(columns, rows))}\n"
