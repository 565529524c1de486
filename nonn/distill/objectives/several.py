"""SimReg from several teachers: further frozen networks, and an MLP for each of them and each device.

The further teachers have the model of the teacher and the weights of earlier runs, such as other seeds. They are no
part of the trained module, so neither checkpoints nor students contain them; they run in every step, also where the
teacher's own answers are stored.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nonn.distill.objectives.activations import activation_transfer
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import summed
from nonn.teacher import Teacher, load_weights, pool

__all__ = ["SimregTeachers"]


class SimregTeachers(nn.Module):
    """Σ_t 2 − 2 cos(h_t(GAP(S)), GAP(T_t)): ``first`` for the teacher, and the same for further ones.

    A further teacher has no parts: every device regresses all of its filters.

    Args:
        first: SimReg from the teacher's part, a function of a batch.
        widths: C_j of each device [N].
        weights: safetensors files of the further teachers, as a run writes them.
        hidden: width of a hidden layer for each filter of the device's part.

    Source: Navaneet et al. 2021, arXiv 2201.05131, where each teacher has an independent MLP as here.
    """

    def __init__(self, first: nn.Module, widths: Sequence[int], weights: Sequence[str], hidden: float) -> None:
        super().__init__()
        self.first, self.heads = first, nn.ModuleList()
        self._widths, self._weights, self._hidden = widths, weights, hidden
        self._teachers: list[Teacher] = []  # a list of modules in a list is not registered

    def prepare(self, teacher: Teacher, students: nn.Module, sample: Tensor | None) -> None:
        """Loads the further teachers and creates their MLPs.

        Raises:
            ConfigError: a file is missing, or of another network than the teacher.
        """
        for path in self._weights:
            further = copy.deepcopy(teacher)
            load_weights(further, Path(path))
            self._teachers.append(further.eval().requires_grad_(False))
            sizes = [(width, math.ceil(width * self._hidden), teacher.num_filters) for width in self._widths]
            self.heads.append(
                nn.ModuleList([nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c)) for a, b, c in sizes])
            )

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        assert batch.inputs is not None
        losses = [self.first(batch)]
        students = [pool(maps) for maps in batch.student_maps]
        for teacher, heads in zip(self._teachers, self.heads, strict=True):
            with torch.no_grad():
                seen = teacher.to(batch.inputs.device).activations(batch.inputs)
            assert isinstance(heads, nn.ModuleList)
            losses += [activation_transfer(head(student), seen) for head, student in zip(heads, students, strict=True)]
        return summed(losses)
