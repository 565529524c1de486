"""Objectives between networks that learn at the same time: pcl, sokd, ie_kd.

Their further networks (mean teachers, a trainable teacher block) are a part of the trained module and of no student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn.config import DistillConfig
from nonn.distill.objectives._common import full_precision, pool_to, same_shape, unit
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import Compute, objective, summed
from nonn.distill.objectives.logits import cross_entropy, kd
from nonn.distill.probes import last_block
from nonn.errors import ConfigError, ShapeError
from nonn.teacher import Teacher

__all__ = ["Sokd", "ie_kd", "pcl"]


@full_precision
def pcl(
    device_logits: Sequence[Tensor], ensemble: Tensor, mean_teachers: Sequence[Tensor], temperature: float
) -> Tensor:
    """Peer collaborative learning: Σ_i τ² KL(p_fused ‖ p_i) + 1/(N−1) Σ_{j≠i} τ² KL(p_j^EMA ‖ p_i), averaged over B.

    Args:
        device_logits: answer of each device alone, N ≥ 2 tensors [B, K].
        ensemble: the fused answer of all devices [B, K]; no gradient flows into it.
        mean_teachers: answer of each device's moving average alone, N tensors [B, K]; no gradient flows into them.
        temperature: τ; 3 in the paper.

    Raises:
        ShapeError: there is one device only.

    Source: Wu & Gong 2021, arXiv 2006.04147. The paper's cross entropies of every peer and of the ensemble are
    ``ce = {weight = 1, on = "both"}`` here. There every peer has its own augmentation; here all see the same one.
    """
    count = len(device_logits)
    if count < 2:
        raise ShapeError("pcl: needs at least two devices")
    log_p = functional.log_softmax(torch.stack(list(device_logits)) / temperature, dim=2)  # [N, B, K]
    peers = functional.log_softmax(torch.stack(list(mean_teachers)).detach() / temperature, dim=2)
    fused = functional.log_softmax(ensemble.detach() / temperature, dim=1).expand_as(log_p)
    from_ensemble = functional.kl_div(log_p, fused, reduction="none", log_target=True).sum(dim=(0, 2)).mean()
    p = peers.exp()
    entropy = (p * peers).sum(dim=2)  # [N, B]; KL(p_j ‖ p_i) = Σ p_j log p_j − Σ p_j log p_i
    others = (p.sum(dim=0) - p) / (count - 1)
    others_entropy = (entropy.sum(dim=0) - entropy) / (count - 1)
    from_peers = (others_entropy - (others * log_p).sum(dim=2)).sum(dim=0).mean()
    return (from_ensemble + from_peers) * temperature**2


@objective("pcl", "device_logits", "ensemble_logits", "mean_teacher_logits")
def _pcl(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.pcl

    def compute(b: Batch) -> Tensor:
        assert b.ensemble_logits is not None
        loss = pcl(b.device_logits, b.ensemble_logits, b.mean_teacher_logits, c.temperature)
        if not c.ramp_up:
            return loss
        left = 1 - torch.as_tensor(b.progress / c.ramp_up).clamp(max=1.0)
        return loss * (-5 * left.square()).exp()

    return compute


class Sokd(nn.Module):
    """Semi-online KD: a trainable copy A of the teacher's last block learns with the student, and teaches it.

    ``KD(S ← sg A) + CE(A, y) + KD(A ← T) + KD(A ← sg S)``. A runs on the frozen teacher's features before that block:
    it knows what the teacher knows, and adapts to what the student can learn. S is the fused answer.

    Args:
        temperature: τ; 4 in the paper.

    Source: Liu et al. 2021, arXiv 2111.11747. The student's cross entropy is the objective ``ce``; leave out ``kd``,
    for which this stands. The paper trains A at a rate of 0.05; here one optimiser trains all.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.layer = ""
        self.block: nn.Module = nn.Identity()

    def prepare(self, teacher: Teacher, students: nn.Module, sample: Tensor | None) -> None:
        """Copies the teacher's last block.

        Raises:
            ConfigError: the teacher is not known to have one.
        """
        self.layer, self.block = last_block(teacher, "distill.objectives.sokd")

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        assert batch.teacher_taps is not None
        adapted = self.block(batch.teacher_taps[self.layer].detach()).float()
        subsets = len(batch.fused) // len(batch.labels)
        repeated, tau = adapted.repeat(subsets, 1), self.temperature
        for_block = cross_entropy(adapted, batch.labels) + kd(adapted, batch.teacher_logits, tau)
        return kd(batch.fused, repeated, tau) + for_block + kd(repeated, batch.fused, tau)


@objective("sokd", "teacher_taps")
def _sokd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return Sokd(config.objectives.sokd.temperature)


@full_precision
def ie_kd(student: Tensor, teacher: Tensor, explored: Sequence[Tensor] = ()) -> Tensor:
    """Inheritance and exploration: d(f_inh, F) − d(f_exp, F') with d(x, y) = Σ |x/‖x‖ − y/‖y‖|, averaged over B.

    The first half of the filters inherits the teacher's; the second half becomes unlike F'.

    Args:
        student: features after the bridge [B, C_j, …], C_j ≥ 2.
        teacher: the teacher's filters of the same part [B, C_j, …]; no gradient flows into it.
        explored: features of the replicas [B, C_j, …], whose second halves are F'; empty: F' is the teacher's.

    Returns:
        Scalar, negative where exploration exceeds what is not inherited yet; summed over features.

    Raises:
        ShapeError: shapes differ, or there is one filter only.

    Source: Huang et al. 2021, arXiv 2107.00181, who compare factors of an auto-encoder; here the bridge's filters are
    compared. Their d is a mean over features. That F' may be a replica's, so that replicas differ, is an addition.
    """
    same_shape("ie_kd", student, teacher)
    half = student.shape[1] // 2
    if not half:
        raise ShapeError("ie_kd: needs parts of at least two filters, one half of which inherits; choose fewer parts")

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (unit(x.flatten(1)) - unit(y.detach().flatten(1))).abs().sum(dim=1).mean()

    others = [pool_to(m, student.shape[2:]) for m in explored] or [teacher]
    exploration = torch.stack([distance(student[:, half:], m[:, half:]) for m in others]).mean()
    return distance(student[:, :half], teacher[:, :half]) - exploration


@objective("ie_kd")
def _ie_kd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    among_replicas = config.objectives.ie_kd.explore == "replicas"

    def compute(b: Batch) -> Tensor:
        if among_replicas and not all(b.replicas):
            raise ConfigError(
                "distill.objectives.ie_kd.explore = 'replicas': a part has one device only; choose partition.parts "
                "so that every part has two devices, or explore = 'teacher'"
            )
        others = [[b.student_maps[j] for j in r] if among_replicas else [] for r in b.replicas]
        triples = zip(b.student_maps, b.teacher_maps, others, strict=True)
        return summed([ie_kd(s, t, o) for s, t, o in triples])

    return compute
