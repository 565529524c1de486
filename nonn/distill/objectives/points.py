"""Hints at the layers of the teacher that stand for groups of similar ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.distill.objectives._common import pool_to
from nonn.distill.objectives.activations import hint
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import Compute, objective, summed
from nonn.distill.probes import blocks, tapped
from nonn.errors import ConfigError
from nonn.teacher import Teacher, pool
from nonn.teacher.convnet import conv

__all__ = ["HintPoints", "cka", "medoids"]

_KEY = "distill.objectives.hint_points"


def cka(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Linear centred kernel alignment of two layers' features [n, C_1] and [n, C_2], in [0, 1].

    Source: Kornblith et al. 2019, arXiv 1905.00414.
    """
    x, y = (z - z.mean(axis=0) for z in (first, second))
    norms = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.linalg.norm(x.T @ y)) ** 2 / max(norms, 1e-300)


def medoids(similarity: NDArray[np.float64], count: int) -> list[int]:
    """The layer nearest to the centre of each cluster, in order, by k-means on the rows of similarities [L, L].

    The first centres are spread evenly over the depth, so the result needs no random numbers.
    """
    centres = similarity[np.linspace(0, len(similarity) - 1, count).round().astype(int)]
    for _ in range(50):
        distance = np.linalg.norm(similarity[:, None] - centres[None], axis=2)  # [L, count]
        member = distance.argmin(axis=1)
        means = [similarity[member == k].mean(axis=0) if (member == k).any() else centres[k] for k in range(count)]
        if np.allclose(means, centres):
            break
        centres = np.array(means)
    return sorted({int(distance[:, k].argmin()) for k in range(count)})


class HintPoints(nn.Module):
    """FitNets hints at clustered layers: Σ_points ½ ‖T_l − r(S_l)‖², averaged over B, summed over devices.

    The teacher's blocks are clustered by CKA of their mean activations on some training inputs, and the block nearest
    to each centre is a hint point. The student's layer is the end of the same stage; r is a 1-wide convolution that is
    dropped after the training.

    Args:
        points: number of clusters.

    Source: recalled (k-means of teacher layers by their similarity). CKA of channel means, and the assignment of
    student layers by stage, stand for what is not known of it.
    """

    def __init__(self, points: int) -> None:
        super().__init__()
        self.points = points
        self.layers: list[str] = []
        self.devices = nn.ModuleList()

    @torch.no_grad()
    def prepare(self, teacher: Teacher, students: nn.Module, sample: Tensor | None) -> None:
        """Chooses the teacher's layers, and creates the regressors.

        Raises:
            ConfigError: a network has no known stages, the teacher has too few blocks, or there are no inputs.
        """
        if sample is None:
            raise ConfigError(f"{_KEY}: give the task a sample of training inputs, by which layers are clustered")
        with tapped([teacher.network], blocks) as (layers,):
            maps, _ = teacher(sample)
        names = [name for name in layers if name.startswith("block-")]
        if len(names) < self.points:
            raise ConfigError(
                f"{_KEY}.points = {self.points}: the teacher has {len(names)} known blocks; choose fewer points or a "
                "deeper teacher.model = 'wrn-…'"
            )
        pooled = [pool(layers[name]).double().cpu().numpy() for name in names]
        similarity = np.array([[cka(a, b) for b in pooled] for a in pooled])
        self.layers = [names[i] for i in medoids(similarity, self.points)]
        training = students.training
        with tapped([student.backbone for student in students.eval().individual()]) as taps:  # type: ignore[operator]
            ends = students.maps(sample[:2])  # type: ignore[operator]
        students.train(training)
        self.devices.extend(
            nn.ModuleList(
                conv(maps.ndim - 2, _at(name, own, end).shape[1], layers[name].shape[1], 1) for name in self.layers
            )
            for own, end in zip(taps, ends, strict=True)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        assert batch.teacher_taps is not None
        losses = []
        for regressors, own, end in zip(self.devices, batch.student_taps, batch.student_maps, strict=True):
            assert isinstance(regressors, nn.ModuleList)
            for regressor, name in zip(regressors, self.layers, strict=True):
                regressed = regressor(_at(name, own, end)).float()
                losses.append(hint(regressed, pool_to(batch.teacher_taps[name].float(), regressed.shape[2:])))
        return summed(losses)


def _at(name: str, taps: Mapping[str, Tensor], end: Tensor) -> Tensor:
    """The student's maps at the end of the stage of the teacher's ``block-STAGE-NUMBER``."""
    stage = int(name.split("-")[1])
    if stage > 2:
        return end
    if f"stage-{stage}" not in taps:
        raise ConfigError(
            f"{_KEY}: needs students whose stages are known; choose student.model = 'wrn-…' or 'se-wrn-…'"
        )
    return taps[f"stage-{stage}"]


@objective("hint_points", "student_taps", "teacher_taps")
def _hint_points(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return HintPoints(config.objectives.hint_points.points)
