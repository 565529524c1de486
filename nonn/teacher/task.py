"""The training task of a teacher, and its accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nonn.data import Split
from nonn.teacher.teacher import Teacher
from nonn.trainer import Target, batches

__all__ = ["TeacherTask", "measure_accuracy", "measure_outcomes"]


class TeacherTask:
    """Cross entropy with label smoothing.

    Args:
        teacher: the teacher to train.
        label_smoothing: share of the target that is spread over all classes.
    """

    def __init__(self, teacher: Teacher, label_smoothing: float) -> None:
        self.module = teacher
        self.label_smoothing = label_smoothing
        self.progress = 0.0

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """No random numbers: an empty mapping."""
        return {}

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        """Named losses of a batch of raw inputs [B, C, …] and labels [B]; their sum is minimised.

        ``nonn.trainer.Task`` describes the arguments.
        """
        _, logits = self.module(inputs)
        return {"ce": functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}


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
