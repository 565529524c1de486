"""``nonn partition``: the partition of an experiment, compared with all partitioners on the same filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nonn import documents
from nonn.data import Split
from nonn.experiment.pilot import designed
from nonn.experiment.teachers import train_assistants, train_teacher
from nonn.experiment.training import Cut, cut_filters
from nonn.experiment.workspace import Workspace
from nonn.files import atomic_file
from nonn.partition import METHODS
from nonn.partition.compare import GRAPHS, SCHEMA, ComparedData, Outputs, PartitionComparison, compare
from nonn.provenance import code_version, machine
from nonn.report.comparison import comparison_plot
from nonn.teacher import Teacher, pool
from nonn.trainer import batches

__all__ = ["compare_partitioners", "cut"]

_FIT = 20_000  # training images for fitting the probe: 78 for each filter of a WRN-40-4


def cut(space: Workspace) -> Cut:
    """Runs every unfinished stage up to the partition."""
    return _cut(space)[2]


def compare_partitioners(space: Workspace) -> tuple[PartitionComparison, Path]:
    """Compares all partitioners on all filter graphs.

    Returns:
        The comparison and its folder: ``compare.json`` and ``compare.svg`` are next to the experiment's partition.
    """
    space, teacher, made = _cut(space)
    config, data = space.experiment, space.data
    fit, held_out = _outputs(space, teacher, data.train, _FIT), _outputs(space, teacher, data.held_out)
    with space.progress.bar("partitioners", len(GRAPHS) * len(METHODS), "cuts") as tick:
        rows = compare(fit, held_out, config.graph, config.partition.num_parts, space.seed, tick)
    comparison = PartitionComparison(
        schema=SCHEMA,
        experiment=config.experiment.name,
        teacher=config.teacher.model,
        teacher_accuracy=float((held_out.logits.argmax(axis=1) == held_out.labels).mean()),
        data=ComparedData(name=data.name, split="held-out", samples=len(held_out.labels), fit=len(fit.labels)),
        parts=config.partition.num_parts,
        seed=space.seed,
        machine=machine(),
        code_version=code_version(),
        rows=tuple(rows),
    )
    folder = made.stage.folder
    documents.write(folder / "compare.json", comparison)
    with atomic_file(folder / "compare.svg") as file:
        file.write_text(comparison_plot(rows, comparison.teacher_accuracy))
    return comparison, folder


def _cut(space: Workspace) -> tuple[Workspace, Teacher, Cut]:
    """The workspace with its design, the network whose filters are cut, and the partition."""
    space = designed(space)
    space.check()
    teacher = train_teacher(space)
    distillation_teacher = train_assistants(space, teacher)
    return space, distillation_teacher.network, cut_filters(space, distillation_teacher)


def _outputs(space: Workspace, teacher: Teacher, split: Split, limit: int = 0) -> Outputs:
    """The teacher's filters and logits over a split, or over a number of samples spread over it."""
    teacher.to(space.device).eval()
    every = -(-len(split) // limit) if limit else 1
    activations, logits = [], []
    with torch.no_grad():
        for raw in batches(split.inputs[::every], space.device):
            maps, fused = teacher(raw)
            activations.append(pool(maps).cpu().numpy())
            logits.append(fused.cpu().numpy())
    return Outputs(np.concatenate(activations), np.concatenate(logits), split.labels[::every])
