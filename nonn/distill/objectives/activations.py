"""Objectives on one part's activations: student [B, C_j, …] against teacher [B, C_j, …].

The student's bridge has as many filters as its part, so no other layer translates between the two: the bridge replaces
the regressor of a paper, and is kept. Sums over features (filters and positions), means over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nonn.distill.objectives._common import full_precision, same_shape, unit
from nonn.errors import ShapeError
from nonn.teacher import pool

__all__ = ["activation_transfer", "at", "hint", "joint_activation_transfer", "partial_logits", "srrl"]


@full_precision
def activation_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the unit-norm activations of one part.

    Args:
        student: features after the bridge [B, C_j, …].
        teacher: the teacher's filters of the same part [B, C_j, …]; no gradient flows into it.

    Returns:
        Scalar in [0, 4]: summed over features, averaged over B.

    Raises:
        ShapeError: shapes differ.

    Source: Bhardwaj et al. 2019, arXiv 1907.11804; their code compares the spatial means of filters [B, C_j]
    (``transfer.pooled``), averages over features and normalises all parts jointly (``joint_activation_transfer``). Its
    weight of 1e4 on a mean over 256 filters is 39 here.
    """
    same_shape("activation transfer", student, teacher)
    s, t = student.flatten(1), teacher.detach().flatten(1)
    return (unit(s) - unit(t)).square().sum(dim=1).mean()


def joint_activation_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Activation transfer with all parts normalised as one vector, as in the NoNN paper.

    Args:
        student: N tensors [B, C_j, …].
        teacher: N tensors [B, C_j, …].

    Returns:
        Scalar in [0, 4].
    """
    s = torch.cat([m.flatten(1) for m in student], dim=1)
    return activation_transfer(s, torch.cat([m.flatten(1) for m in teacher], dim=1))


@full_precision
def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """FitNets hint: ½ ‖T − S‖², summed over features, averaged over B.

    Args:
        student: features after the bridge [B, C_j, …]; the bridge is the paper's regressor.
        teacher: [B, C_j, …]; no gradient flows into it.

    Raises:
        ShapeError: shapes differ.

    Source: Romero et al. 2015, arXiv 1412.6550, which trains the hint first and everything else after it.
    """
    same_shape("hint", student, teacher)
    return 0.5 * (teacher.detach() - student).flatten(1).square().sum(dim=1).mean()


@full_precision
def at(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer: ‖Q_S / ‖Q_S‖ − Q_T / ‖Q_T‖‖² with Q = Σ_c A_c² over filters.

    Args:
        student: [B, C_j, H, W] or [B, C_j, T]; the number of filters may differ from the teacher's.
        teacher: of the same resolution; no gradient flows into it.

    Returns:
        Scalar in [0, 2]: summed over positions, averaged over B.

    Raises:
        ShapeError: resolutions differ, or there is one position only: its attention is always 1.

    Source: Zagoruyko & Komodakis 2017, arXiv 1612.03928; their code averages over positions.
    """
    if student.ndim < 3 or student[0, 0].numel() < 2:
        raise ShapeError(f"at: maps {list(student.shape)} have one position, whose attention is always 1")
    s, t = student.square().sum(dim=1), teacher.detach().square().sum(dim=1)
    same_shape("at", s, t)
    return (unit(s.flatten(1)) - unit(t.flatten(1))).square().sum(dim=1).mean()


@full_precision
def partial_logits(maps: Tensor, classifier: Tensor) -> Tensor:
    """Contribution of a part to the teacher's logits: GAP(maps) · W_Tᵀ restricted to the part's filters.

    Logits of a teacher that ends in a global average and a linear layer are the sum of these over all parts and the
    bias, exactly.

    Args:
        maps: maps of one part, from the teacher or a student [B, C_j, …].
        classifier: the teacher's weights of these filters [K, C_j]; no gradient flows into it.

    Returns:
        [B, K].
    """
    return pool(maps) @ classifier.detach().T


@full_precision
def srrl(student: Tensor, teacher: Tensor, classifier: Tensor, feature_weight: float = 1.0) -> Tensor:
    """Partial logits and pooled features: ‖z_T − W_T GAP(S)‖² + ‖GAP(T) − GAP(S)‖² for one part.

    The first term weights a filter by its effect on the teacher's answer, without a new parameter.

    Args:
        student: [B, C_j, …].
        teacher: [B, C_j, …]; no gradient flows into it.
        classifier: the teacher's weights of the part's filters [K, C_j]; no gradient flows into it.
        feature_weight: weight of the second term; 0 uses only partial logits.

    Returns:
        Scalar ≥ 0: summed over classes and filters, averaged over B.

    Raises:
        ShapeError: shapes differ.

    Source: Yang et al. 2021, "Knowledge distillation via softmax regression representation learning", ICLR. There z_T
    are all logits and a connector brings the student's features to the teacher's width; here z_T are the part's own.
    """
    same_shape("srrl", student, teacher)
    target = teacher.detach()
    logits = partial_logits(target, classifier) - partial_logits(student, classifier)
    features = pool(target) - pool(student)
    return (logits.square().sum(dim=1) + feature_weight * features.square().sum(dim=1)).mean()
