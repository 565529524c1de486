"""What the trainer minimises for the students: all of them and their fusion, jointly.

The teacher runs once a batch and is no part of the trained module. Every student is a network of its own, built one
by one: a shared trunk by accident (one deep copy outside of the loop) is a mistake of public code, tested against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.distill.failout import sample_answering
from nonn.distill.fusion import FusionLayer
from nonn.distill.objectives import Batch, build_terms
from nonn.students import Student
from nonn.teacher import Teacher, pool

__all__ = ["DistillTask", "Students"]


class Students(nn.Module):
    """All students and the fusion that they are trained through.

    Args:
        students: one a device [N].
        fusion: over their features.
    """

    def __init__(self, students: Sequence[Student], fusion: FusionLayer) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.fusion = fusion

    def features(self, x: Tensor) -> list[Tensor]:
        """What each device sends, N tensors [B, d_i], for raw inputs [B, C, …]."""
        return [student(x) for student in self.students]

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of each device, N tensors [B, C_j, …], for raw inputs [B, C, …]."""
        return [cast("Student", student).maps(x) for student in self.students]


class DistillTask:
    """Distils parts of a teacher into students, under failout.

    Args:
        teacher: frozen here.
        students: what is trained.
        filters: the teacher's filters that each device learns, N lists.
        config: objectives and failout.
    """

    def __init__(
        self, teacher: Teacher, students: Students, filters: Sequence[Sequence[int]], config: DistillConfig
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.module = students
        self.filters = [torch.as_tensor(np.asarray(f, dtype=np.int64)) for f in filters]
        self.config = config
        self.terms = build_terms(config)

    def losses(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Named, weighted losses of a batch of raw inputs [B, C, …] and labels [B]; their sum is minimised."""
        with torch.no_grad():
            teacher_maps, teacher_logits = self.teacher.to(inputs.device)(inputs)
        maps = self.module.maps(inputs)
        answered = sample_answering(self.config.failout, len(inputs), len(maps), self.config.p_failout, generator)
        fused = self.module.fusion([pool(m) for m in maps], answered.to(inputs.device))
        parts = [teacher_maps.index_select(1, f.to(inputs.device)) for f in self.filters]
        batch = Batch(
            labels, fused.float(), teacher_logits, maps, [_fit(t, m) for t, m in zip(parts, maps, strict=True)]
        )
        return {name: term(batch) for name, term in self.terms.items()}


def _fit(teacher: Tensor, student: Tensor) -> Tensor:
    """Averages the teacher's maps [B, C_j, …] down to the student's resolution, or both to one value a filter."""
    if teacher.shape[2:] == student.shape[2:]:
        return teacher
    if student.ndim == 3:
        return nn.functional.adaptive_avg_pool1d(teacher, student.shape[2])
    return nn.functional.adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[3]))
