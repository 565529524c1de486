"""Objectives on the relations between the samples of a batch, in the features of one part.

All of them depend on the batch size: a relation is between two or three samples of the same batch. None needs a
translation between the student's and the teacher's features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nonn.distill.objectives._common import full_precision, root, unit
from nonn.teacher import pool

__all__ = ["pkt", "rkd", "sp"]


@full_precision
def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity preserving: ‖G_S − G_T‖_F² / B² with G = v vᵀ, every row at unit L2 norm.

    Args:
        student: [B, C, …], flattened to v [B, D]; C may differ from the teacher's.
        teacher: [B, C', …]; no gradient flows into it.

    Returns:
        Scalar in [0, 4 / B]; it depends on the batch size.

    Source: Tung & Mori 2019, arXiv 1907.09682. A public re-implementation normalises rows by their L1 norm.
    """

    def similarity(v: Tensor) -> Tensor:
        flat = v.flatten(1)
        return unit(flat @ flat.T)

    return (similarity(student) - similarity(teacher.detach())).square().sum() / len(student) ** 2


@full_precision
def rkd(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Relational KD: Huber losses on pair distances over their mean, and on the cosines of triplet angles.

    ``λ_D mean_ij h(d_ij / d̄) + λ_A mean_ijk h(cos ∠ijk)`` over distinct samples, h the Huber loss with δ = 1.

    Args:
        student: [B, C, …], averaged over positions; C may differ from the teacher's.
        teacher: [B, C', …]; no gradient flows into it.
        distance_weight: λ_D.
        angle_weight: λ_A.

    Returns:
        Scalar ≥ 0; it depends on the batch size, and is 0 for one sample.

    Source: Park et al. 2019, arXiv 1904.05068. Their code averages with the zeros of the diagonals. In half precision
    squared distances overflow, and a collapsed batch divides 0 by 0: float32 and a floor under the root prevent both.
    """
    s, t = pool(student), pool(teacher.detach())
    batch = len(s)
    distinct = ~torch.eye(batch, dtype=torch.bool, device=s.device)
    (s_distances, s_angles), (t_distances, t_angles) = _relations(s, distinct), _relations(t, distinct)
    pairs = functional.smooth_l1_loss(s_distances, t_distances, reduction="none") * distinct
    # Where two of the three samples are the same, both cosines are 0 or both are 1.
    angles = functional.smooth_l1_loss(s_angles, t_angles, reduction="sum")
    distance_loss = pairs.sum() / max(batch * (batch - 1), 1)
    angle_loss = angles / max(batch * (batch - 1) * (batch - 2), 1)
    return distance_weight * distance_loss + angle_weight * angle_loss


def _relations(x: Tensor, distinct: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean [B, B], and cosines of the angles at each vertex [B, B, B], of embeddings [B, D]."""
    difference = x[None] - x[:, None]  # [vertex, other, D]
    distances = root(difference.square().sum(dim=2))
    mean = (distances * distinct).sum() / distinct.sum().clamp_min(1)
    directions = difference / distances[:, :, None]
    return distances / mean.clamp_min(1e-12), directions @ directions.transpose(1, 2)


@full_precision
def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: KL(p_T ‖ p_S) of each sample's affinities to the batch, averaged over B.

    p_i is (cos + 1) / 2 between sample i and every sample, at sum 1.

    Args:
        student: [B, C, …], averaged over positions; C may differ from the teacher's.
        teacher: [B, C', …]; no gradient flows into it.

    Returns:
        Scalar ≥ 0; it depends on the batch size.

    Source: Passalis & Tefas 2018, arXiv 1803.10837; public code averages over B² instead of B.
    """

    def affinities(x: Tensor) -> Tensor:
        direction = unit(pool(x))
        kernel = ((direction @ direction.T + 1) / 2).clamp_min(1e-7)  # a cosine can round to less than −1
        return kernel / kernel.sum(dim=1, keepdim=True)

    p, q = affinities(teacher.detach()), affinities(student)
    return (p * (p.log() - q.log())).sum(dim=1).mean()
