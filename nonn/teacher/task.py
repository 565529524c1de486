"""What the trainer minimises for a teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nonn.teacher.teacher import Teacher

__all__ = ["TeacherTask"]


class TeacherTask:
    """Cross entropy with label smoothing.

    Args:
        teacher: what is trained.
        label_smoothing: share of the target that is spread over all classes.
    """

    def __init__(self, teacher: Teacher, label_smoothing: float) -> None:
        self.module = teacher
        self.label_smoothing = label_smoothing
        self.progress = 0.0

    def losses(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Named losses of a batch of raw inputs [B, C, …] and labels [B]; their sum is minimised."""
        _, logits = self.module(inputs)
        return {"ce": functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}
