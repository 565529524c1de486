"""A teacher that sees several augmentations of each sample, and a student that sees one: vrkd, umts.

The teacher's answers to all ``distill.teacher_views`` augmentations of a sample are stored before training, so several
shots cost no more than one. Without stored answers the only shot is the student's own input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.distill.objectives._common import full_precision, same_shape
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import Compute, kd_from, objective, summed
from nonn.teacher import pool

__all__ = ["Umts", "average_views", "umts"]

_MOST = 10.0  # bound of |log σ²|


@torch.no_grad()
def average_views(view_logits: Tensor, temperature: float) -> Tensor:
    """Logits whose softmax at τ is the mean of the softened answers to all views of a sample.

    KL from this mean has the gradient of the mean of the KL from every view.

    Args:
        view_logits: the teacher's logits [B, V, K].
        temperature: τ.

    Returns:
        float32 [B, K], up to a constant for each sample.

    Source: the KL of VRKD (viewpoint-robust distillation), recalled; views are augmentations here, not cameras.
    """
    log_p = torch.log_softmax(view_logits.float() / temperature, dim=2)
    return torch.logsumexp(log_p, dim=1) * temperature


@full_precision
def umts(student: Tensor, shots: Tensor, log_variance: Tensor) -> Tensor:
    """Uncertainty-aware multi-shot teacher: ‖T̄ − S‖² / (2 σ²) + C_j/2 · log σ², with T̄ the mean over shots.

    Args:
        student: pooled features of one part [B, C_j].
        shots: the teacher's pooled features of the part for V shots of each sample [B, V, C_j]; without gradient.
        log_variance: log σ² that the student predicts for each sample [B].

    Returns:
        Scalar, negative where a student is right and sure: summed over features, averaged over B.

    Raises:
        ShapeError: features differ in width.

    Source: Jin et al. 2020, arXiv 2001.05197, recalled. There shots are pictures of one person; here they are
    augmentations of one sample. The factor C_j of the logarithm makes the sum the likelihood of a Gaussian.
    """
    mean = shots.detach().mean(dim=1)
    same_shape("umts", student, mean)
    squares = (mean - student).square().sum(dim=1)
    return (0.5 * squares * (-log_variance).exp() + 0.5 * student.shape[1] * log_variance).mean()


class Umts(nn.Module):
    """The layer with which each student predicts the logarithm of its error's variance from its pooled features.

    Args:
        widths: C_j of each device [N].
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.devices = nn.ModuleList([nn.Linear(width, 1) for width in widths])

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        shots = batch.view_features or [pool(maps)[:, None] for maps in batch.teacher_maps]
        losses = []
        for layer, maps, seen in zip(self.devices, batch.student_maps, shots, strict=True):
            features = pool(maps)
            bounded = _MOST * torch.tanh(layer(features)[:, 0].float() / _MOST)
            losses.append(umts(features, seen, bounded))
        return summed(losses)


@objective("vrkd", "views")
def _vrkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.vrkd

    def every(batch: Batch) -> Tensor:
        views = batch.teacher_logits[:, None] if batch.view_logits is None else batch.view_logits
        return average_views(views, c.temperature)

    return kd_from(c, every)


@objective("umts", "views")
def _umts(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return Umts(widths)
