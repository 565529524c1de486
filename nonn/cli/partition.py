"""``nonn partition EXPERIMENT.toml``: cuts the teacher's filters and says how good the cut is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.cli.run import add_run_options

if TYPE_CHECKING:
    from nonn.data import Split
    from nonn.experiment.run import Run
    from nonn.experiment.stages import Stage
    from nonn.partition.compare import Outputs

SUMMARY = "train the teacher if need be, cut its filters into parts, print how good the cut is"

_FIT = 20_000  # training images that the probe is fitted to: 78 for each filter of a WRN-40-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml", help="experiment file; see examples/")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare every method on every filter graph; writes compare.json and compare.svg beside the partition",
    )
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.config import load_experiment

    experiment = load_experiment(args.experiment, args.overrides)

    from nonn.experiment.pilot import settle
    from nonn.experiment.run import Run
    from nonn.experiment.stages import exclusive

    with exclusive(args.runs / experiment.experiment.name):
        run = Run(settle(experiment, args.runs), args.runs)
        run.check()
        _, _, stage = run.partition()
        if args.compare:
            _compare(run, stage, as_json=args.json)
            return 0
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


def _compare(run: Run, stage: Stage, *, as_json: bool) -> None:
    """Compares all partitioners, writes the comparison beside the experiment's own cut and prints it."""
    from nonn import documents
    from nonn.cli.console import bar
    from nonn.files import atomic_file
    from nonn.partition import METHODS
    from nonn.partition.compare import GRAPHS, SCHEMA, ComparedData, Comparison, compare
    from nonn.provenance import code_version, machine
    from nonn.report.comparison import comparison_plot, comparison_table
    from nonn.report.table import as_text

    config = run.experiment
    fit, held_out = _outputs(run, run.data.train, _FIT), _outputs(run, run.data.held_out)
    with bar("partitioners", len(GRAPHS) * len(METHODS), "cuts") as tick:
        rows = compare(fit, held_out, config.graph, config.partition.num_parts, run.seed, tick)
    comparison = Comparison(
        schema=SCHEMA,
        experiment=config.experiment.name,
        teacher=config.teacher.model,
        teacher_accuracy=float((held_out.logits.argmax(axis=1) == held_out.labels).mean()),
        data=ComparedData(name=run.data.name, split="held-out", samples=len(held_out.labels), fit=len(fit.labels)),
        parts=config.partition.num_parts,
        seed=run.seed,
        machine=machine(),
        code_version=code_version(),
        rows=tuple(rows),
    )
    documents.write(stage.folder / "compare.json", comparison)
    with atomic_file(stage.folder / "compare.svg") as file:
        file.write_text(comparison_plot(rows, comparison.teacher_accuracy))
    if as_json:
        print(json.dumps(documents.to_json(comparison), indent=2, ensure_ascii=False))
        return
    print(as_text(comparison_table(rows)))
    for row in rows:
        if row.error:
            print(f"{row.method} on {row.graph}: {row.error}")
    print(f"\ncomparison {stage.folder / 'compare.json'}\nfigure     {stage.folder / 'compare.svg'}")


def _outputs(run: Run, split: Split, limit: int = 0) -> Outputs:
    """What the teacher says about a split, or about so many samples spread over it."""
    import numpy as np
    import torch

    from nonn.partition.compare import Outputs
    from nonn.teacher import pool
    from nonn.trainer import batches

    teacher, _ = run.mentor()  # the teacher, or the assistant that students learn from in its place
    teacher.to(run.device).eval()
    every = -(-len(split) // limit) if limit else 1
    activations, logits = [], []
    with torch.no_grad():
        for raw in batches(split.inputs[::every], run.device):
            maps, fused = teacher(raw)
            activations.append(pool(maps).cpu().numpy())
            logits.append(fused.cpu().numpy())
    return Outputs(np.concatenate(activations), np.concatenate(logits), split.labels[::every])
