"""Parity part: N − 1 devices learn a part each, one learns the sum of their features, as in coded computing.

A single lost part is the parity minus the features of the others (narrower parts are padded with zeros); the trained
fusion then answers as if nothing were lost. With several lost parts, or without the parity, lost parts count as zeros.

The parity student is one more student of the widest part. It learns after the others, which are frozen, by the squared
error to the sum of their features, in units of its mean square, with their epochs, optimiser and augmentation.

References: Kosaian, Rashmi, Venkataraman 2019, "Parity models" (ParM), SOSP, arXiv 1905.00863. There the parity model
gets the sum of several queries; here all devices see the same input, and what is summed is the features of the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nonn.bundle.views import select_view
from nonn.distill import Students
from nonn.errors import ConfigError
from nonn.experiment.rival import Rival
from nonn.experiment.training import Trained
from nonn.experiment.workspace import Workspace
from nonn.fusion import LinearHead
from nonn.fusion.head import Features, FloatArray
from nonn.students import Student
from nonn.trainer import Target

__all__ = ["ParityTask", "build"]

_STREAM, _GENERATION = 6, 9_001  # of random numbers; see ``nonn.experiment.seeds``


class ParityTask:
    """Trains the parity student on the sum of the others' features.

    Args:
        students: frozen here.
        parity: as wide as the widest of them.
    """

    progress: Any = 0.0

    def __init__(self, students: Students, parity: Student) -> None:
        self.students, self.module = students.eval().requires_grad_(False), parity

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """No random numbers: an empty mapping."""
        return {}

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        """The squared error to the sum of the features, over their mean square; a scalar, see ``Task.losses``."""
        features = self.students.to(inputs.device).features(inputs)
        total = torch.stack([pad(f, (0, self.module.width - f.shape[1])) for f in features]).sum(dim=0)
        error = self.module(select_view(inputs, self.module.view)) - total
        return {"parity": error.square().sum(dim=1).mean() / total.square().mean().clamp_min(1e-12)}


def build(space: Workspace, trained: Trained) -> Rival:
    """Trains the parity student.

    Args:
        space: workspace of the row.
        trained: what the row has trained.

    Returns:
        The students with one more for the parity, and the trained fusion behind the reconstruction.

    Raises:
        ConfigError: ``distill.epochs`` is 0, so that nothing trains the parity student.
    """
    if not space.experiment.distill.epochs:
        raise ConfigError("row 'parity' of the study: distill.epochs = 0 leaves its parity student untrained")
    students, partition = trained.students.network, trained.cut.partition
    fusion = students.fusion.head()
    assert isinstance(fusion, LinearHead)
    widest = max(range(len(fusion.widths)), key=lambda i: fusion.widths[i])
    parity = space.networks.students(partition, _GENERATION).individual()[widest]
    stage = space.stage("parity", {"format": 1, "students": trained.students.stage.key})
    space.fit(ParityTask(students, parity), space.experiment.distill, stage, _STREAM, "parity student")
    stage.finish()
    last = fusion.num_devices  # the number of the parity's device

    def answer(arrived: Features) -> FloatArray:
        parts = {i: f for i, f in arrived.items() if i != last}
        lost = [i for i in range(last) if i not in parts]
        if len(lost) == 1 and last in arrived:
            padded = [np.pad(f, ((0, 0), (0, parity.width - f.shape[1]))) for f in parts.values()]
            parts[lost[0]] = (arrived[last] - sum(padded))[:, : fusion.widths[lost[0]]]
        if parts:
            return fusion.logits(parts)
        return np.tile(fusion.weights(0)[1], (len(arrived[last]), 1))

    return Rival(Students([*students.individual(), parity], students.fusion), answer)
