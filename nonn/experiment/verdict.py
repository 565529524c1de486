"""Accuracy of the students next to their teacher's, and where they fall short the likely cause and the option for it.

The accuracies are those of the bundle's table, on the test split. Nothing is chosen by them. The cause follows from the
training split: students that are poor on it learned too little or are too small; students that are good on it have
learned it by heart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from nonn.config import TrainingConfig
from nonn.experiment.teachers import teacher_outcomes
from nonn.experiment.training import Trained
from nonn.experiment.workspace import Workspace
from nonn.fusion import Head
from nonn.reliability.table import AccuracyTable
from nonn.report.table import percent, points
from nonn.teacher import measure_accuracy
from nonn.trainer import batch_size, batches

__all__ = ["say_verdict"]

LARGE = 0.03  # a gap to the teacher that is explained, if it is also two standard errors; with half of the devices 0.1
FEW_STEPS = 300  # the digits experiment has as many
_SAMPLES = 512


def say_verdict(space: Workspace, trained: Trained, head: Head, table: AccuracyTable) -> None:
    """Reports the accuracy of teacher and students, and the likely cause of a large gap.

    Args:
        space: the workspace; its progress gets the lines.
        trained: teacher and students.
        head: the fusion that is served.
        table: accuracy of every subset of devices on the test split.
    """
    teacher, devices = float(teacher_outcomes(space, trained.teacher).mean()), table.num_devices
    fused = table.stated(table.full).accuracy
    alone = [table.stated(1 << i).accuracy for i in range(devices)]
    space.progress.say(
        f"test split: teacher {percent(teacher)}; students: all {devices} fused {percent(fused)}, one alone "
        f"{percent(sum(alone) / devices)} on average ({percent(min(alone))} to {percent(max(alone))})"
    )
    noise = 2 * math.sqrt(max(teacher * (1 - teacher), 1 / table.samples) / table.samples)
    half = table.by_failures()[devices // 2].mean
    gaps = {"with all devices": teacher - fused, f"with {devices // 2} failed": teacher - half}
    limits = (max(LARGE, noise), max(0.1, noise))
    pairs = zip(gaps.items(), limits, strict=True)
    words = [f"{points(gap)} points {what}" for (what, gap), limit in pairs if gap > limit]
    if not words:
        return
    space.progress.say(f"warning: the students are {' and '.join(words)} below the teacher; likely causes:")
    for cause in _causes(space, trained, head, fused_gap=teacher - fused > limits[0]):
        space.progress.say(f"  - {cause}")


def _causes(space: Workspace, trained: Trained, head: Head, *, fused_gap: bool) -> Iterator[str]:
    """Likely causes with the options that help, the likeliest first.

    Args:
        space: the workspace.
        trained: teacher and students.
        head: the fusion that is served.
        fused_gap: the answer of all devices falls short, too.
    """
    config, train = space.experiment, space.data.train
    steps = config.distill.epochs * steps_per_epoch(config.distill, len(train))
    if 0 < steps < FEW_STEPS:
        needed = math.ceil(FEW_STEPS / steps_per_epoch(config.distill, len(train)))
        yield f"few steps: {steps} in {config.distill.epochs} epochs; set distill.epochs to {needed} or more"
    sample = train.take(np.arange(len(train))[:: max(1, len(train) // _SAMPLES)])
    students = trained.students.network.to(space.device).eval()
    with torch.no_grad():
        chunks = [students.features(x) for x in batches(sample.inputs, space.device)]
    features = {i: torch.cat(f).cpu().numpy() for i, f in enumerate(zip(*chunks, strict=True))}
    learned = float((head.logits(features).argmax(axis=1) == sample.labels).mean())
    known = measure_accuracy(trained.teacher.network, sample, space.device)
    limited = any(vars(config.devices.budget).values()) or config.devices.classes
    if known - learned > LARGE:
        names = ", ".join(dict.fromkeys(space.networks.sizing.models))
        yield (
            f"small students ({names}): {percent(learned)} on the training split, the teacher {percent(known)}; set a "
            "larger student.model" + (", and the limits in devices for it" if limited else "")
            + ", or distill.epochs higher"
        )  # fmt: skip
    elif fused_gap:
        yield (
            f"few samples: {percent(learned)} on the {len(train):,} training samples, so they know these by heart; add "
            "data, or augment them (data.crop, data.flip, data.noise, data.cutout)"
        )
    parts = config.partition.num_parts
    if parts > 1 and config.partition.overlap == 1:
        yield (
            f"each device learns one of {parts} parts only; fewer partition.parts or partition.overlap = 2 make each "
            "device alone more accurate"
        )


def steps_per_epoch(config: TrainingConfig, samples: int) -> int:
    """Steps of one epoch."""
    return samples // batch_size(config, samples)
