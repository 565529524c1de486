"""Mutual information and attention between student and teacher: mimkd, rtk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn.config import DistillConfig
from nonn.distill.objectives._common import full_precision, pool_to, unit
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import Compute, PerDevice, objective, summed
from nonn.errors import ShapeError

__all__ = ["Mimkd", "mimkd", "rtk"]


@full_precision
def mimkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Negative Jensen-Shannon bound of mutual information: E sp(−T(t, s)) + E sp(T(t, s′)), sp the softplus.

    Pairs of one sample are positive, those of two samples of the batch negative; the critic is T(t, s) = φ(t)ᵀψ(s).

    Args:
        student: ψ of its features [B, positions, dim].
        teacher: φ of its features [B, positions, dim]; its projection learns too.

    Returns:
        Scalar ≥ 0, 2 log 2 where the critic knows nothing; averaged over positions and pairs. It depends on the batch.

    Source: Shrivastava, Qi, Ordonez 2021, arXiv 2110.15946; the bound is recalled. There other critics take the two
    features together; this one is a product, so that all pairs of a batch are one matrix.
    """
    scores = torch.einsum("ipd,jpd->pij", teacher, student)
    same = torch.eye(len(student), dtype=torch.bool, device=student.device)
    positive = functional.softplus(-scores).masked_fill(~same, 0.0).sum(dim=(1, 2)) / len(student)
    others = max(1, len(student) * (len(student) - 1))
    negative = functional.softplus(scores).masked_fill(same, 0.0).sum(dim=(1, 2)) / others
    return (positive + negative).mean()


class Mimkd(nn.Module):
    """MIMKD of one device: the pooled features (global) plus each position (local), with a critic for each.

    Args:
        width: C_j.
        dim: dimension of the critics.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(width, dim), nn.Linear(width, dim)
        self.local_student, self.local_teacher = nn.Linear(width, dim), nn.Linear(width, dim)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Scalar of maps [B, C_j, …] and labels [B]."""
        s, t = (_positions(maps.float()) for maps in (student, teacher.detach()))
        s, t = _unit_scale(s), _unit_scale(t)
        whole = mimkd(self.student(s.mean(1, keepdim=True)), self.teacher(t.mean(1, keepdim=True)))
        return whole + mimkd(self.local_student(s), self.local_teacher(t))


@full_precision
def rtk(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """Representative teacher keys: every layer of the student attends to the teacher's layers that resemble it.

    Σ_a Σ_b w_ab ‖Q̂_a − Q̂_b‖², with Q̂ the unit-norm attention Σ_c A_c² of a layer at the coarser resolution of the two,
    and w_ab the softmax over b of cos(Q̂_a, Q̂_b) / τ.

    Args:
        student: layers of a student, each [B, C_a, …].
        teacher: layers of the teacher, each [B, C_b, …]; no gradient flows into them or through the weights.
        temperature: τ; a small one attends to a single layer.

    Returns:
        Scalar in [0, 2 layers]: summed over layers, averaged over B.

    Raises:
        ShapeError: no layer of the student has more than one position.

    Source: "Knowledge Distillation with Representative Teacher Keys", arXiv 2206.12788, by its abstract only: the
    formula was not reachable. The cosine as the weight is a substitute, and results of the paper do not carry over.
    """
    losses = []
    for layer in student:
        cosines = []
        for key in teacher:
            size = [min(a, b) for a, b in zip(layer.shape[2:], key.shape[2:], strict=True)]
            if torch.Size(size).numel() > 1:
                q, k = (_attention(pool_to(maps, size)) for maps in (layer, key.detach()))
                cosines.append((q * k).sum(dim=1))
        if cosines:
            alike = torch.stack(cosines, dim=1)  # [B, layers]
            weight = functional.softmax(alike.detach() / temperature, dim=1)
            losses.append((weight * (2 - 2 * alike)).sum(dim=1).mean())
    if not losses:
        raise ShapeError(f"rtk: maps {[list(s.shape) for s in student]} have one position, whose attention is always 1")
    return summed(losses)


def _unit_scale(positions: Tensor) -> Tensor:
    """Features [B, positions, C] divided by their root mean square over filters and positions."""
    flat = positions.flatten(1)
    return (unit(flat) * math.sqrt(flat.shape[1])).view(positions.shape)


def _positions(maps: Tensor) -> Tensor:
    """Maps [B, C, …] as [B, positions, C]; pooled features are one position."""
    return maps.flatten(2).transpose(1, 2) if maps.ndim > 2 else maps[:, None]


def _attention(maps: Tensor) -> Tensor:
    return unit(maps.square().sum(dim=1).flatten(1))


@objective("mimkd")
def _mimkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return PerDevice([Mimkd(width, config.objectives.mimkd.dim) for width in widths])


@objective("rtk", "student_taps", "teacher_taps")
def _rtk(config: DistillConfig, widths: Sequence[int]) -> Compute:
    tau = config.objectives.rtk.temperature

    def compute(batch: Batch) -> Tensor:
        keys = list((batch.teacher_taps or {}).values())
        layers = zip(batch.student_taps, batch.student_maps, batch.teacher_maps, strict=True)
        return summed([rtk([*taps.values(), last], [*keys, part], tau) for taps, last, part in layers])

    return compute
