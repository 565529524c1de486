"""The training task of a teacher, and its accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nonn.config import TeacherConfig
from nonn.data import Split
from nonn.teacher.branches import Branches, drop_views
from nonn.teacher.teacher import Teacher
from nonn.trainer import Target, batches

__all__ = ["TeacherTask", "measure_accuracy", "measure_outcomes"]


class TeacherTask:
    """Cross entropy with label smoothing; of a teacher with branches, of the mean logits and of every branch alone.

    Args:
        teacher: the teacher to train.
        config: label smoothing, modality dropout, and the weight of the branches' separate losses.
    """

    def __init__(self, teacher: Teacher, config: TeacherConfig) -> None:
        self.module = teacher
        self.config = config
        self.branches = teacher.network if isinstance(teacher.network, Branches) else None
        self.progress = 0.0

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The views that stay, ``kept`` [B, U], under modality dropout; else an empty mapping."""
        p = self.config.modality_dropout
        return {"kept": drop_views(batch, len(self.branches.views), p, generator)} if self.branches and p else {}

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        """Named losses of a batch of raw inputs [B, C, …] and labels [B]; their sum is minimised.

        ``nonn.trainer.Task`` describes the arguments.
        """
        maps, logits = self.module(inputs)
        smoothing = self.config.label_smoothing
        if self.branches is None:
            return {"ce": functional.cross_entropy(logits, labels, label_smoothing=smoothing)}
        each = self.branches.branch_logits(maps)  # [B, U · M, K]
        if "kept" in draws:
            weight = draws["kept"].repeat_interleave(self.branches.copies, dim=1).to(each.dtype)
            logits = (each * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)
        alone = functional.cross_entropy(
            each.flatten(0, 1), labels.repeat_interleave(each.shape[1]), label_smoothing=smoothing
        )
        return {
            "ce": functional.cross_entropy(logits, labels, label_smoothing=smoothing),
            "branches": self.config.branch_weight * alone,
        }


def measure_accuracy(teacher: Teacher, split: Split, device: str) -> float:
    """Accuracy of the teacher on a split, in [0, 1]."""
    return float(measure_outcomes(teacher, split, device).mean())


def measure_outcomes(teacher: Teacher, split: Split, device: str) -> NDArray[np.bool_]:
    """Whether the teacher classifies each sample of a split correctly [n]."""
    teacher.to(device).eval()
    with torch.no_grad():
        predicted = torch.cat([teacher(x)[1].argmax(dim=1).cpu() for x in batches(split.inputs, device)])
    right: NDArray[np.bool_] = predicted.numpy() == split.labels
    return right
