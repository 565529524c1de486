"""Temporal mean teachers: an exponential moving average of the students, which answers next to them in training.

The average is a part of the trained module without gradients, so checkpoints have it and a resumed run continues with
it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nonn.distill.students import JointStudents, Students

__all__ = ["MeanTeachers"]

_LONGEST = 0.999


class MeanTeachers(nn.Module):
    """θ_EMA ← d θ_EMA + (1 − d) θ with d = min(1 − 1 / (step + 1), 0.999), of all students and their fusion.

    Statistics of batch normalisation are not averaged: those of the average come from its passes over the batches.

    Args:
        students: the students as they are trained.

    Source: Wu & Gong 2021, "Peer Collaborative Learning for Online Knowledge Distillation", AAAI, arXiv 2006.04147.
    """

    steps: Tensor

    def __init__(self, students: Students | JointStudents) -> None:
        super().__init__()
        self.students = copy.deepcopy(students).requires_grad_(False)
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def update(self, students: Students | JointStudents) -> None:
        """One step towards the students; the first one copies them."""
        rate = (1 / (self.steps + 1)).clamp_min(1 - _LONGEST)
        for average, value in zip(self.students.parameters(), students.parameters(), strict=True):
            average.lerp_(value, rate)
        self.steps += 1
