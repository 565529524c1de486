"""Objectives on logits [B, K]: summed over classes, averaged over the batch.

KL divided by B · K instead of B, as in some public code, is 100 times too small on 100 classes. Targets
are revised before, by ``nonn.distill.targets``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nonn.distill.objectives._common import full_precision, root, same_shape
from nonn.errors import ShapeError

__all__ = ["cross_entropy", "dkd", "kd", "mutual", "standardise"]


@full_precision
def cross_entropy(student_logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−log p(target), averaged over B, of logits [B, K] and labels [B].

    Args:
        student_logits: [B, K].
        target: labels [B].
        label_smoothing: share of the target that is spread over all classes.
    """
    return functional.cross_entropy(student_logits, target, label_smoothing=label_smoothing)


@full_precision
def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation: τ² · KL(p_T^τ ‖ p_S^τ), averaged over B.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into it.
        temperature: τ.

    Returns:
        Scalar ≥ 0, in nats times τ².

    Raises:
        ShapeError: shapes differ.

    Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    same_shape("kd", student_logits, teacher_logits)
    student = functional.log_softmax(student_logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


@full_precision
def standardise(logits: Tensor) -> Tensor:
    """Logits [B, K] at mean 0 and deviation 1 in every row, for a KD without the teacher's scale.

    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", CVPR. They add 1e-7 to the deviation,
    which multiplies the gradient of equal logits by 1e7; here 1e-6 is added to the variance.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / root(centred.square().sum(dim=1, keepdim=True) / max(logits.shape[1] - 1, 1))


@full_precision
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float,
    tckd_weight: float = 1.0,
    nckd_weight: float = 8.0,
) -> Tensor:
    """Decoupled KD: τ² · (α · KL(b_T ‖ b_S) + β · KL(p̂_T ‖ p̂_S)), averaged over B.

    b is the target class against all others, p̂ the distribution over the others. KD is the same with α = 1 and β the
    teacher's probability of the others, so it ignores p̂ where the teacher is certain.

    Args:
        student_logits: [B, K], K ≥ 2.
        teacher_logits: [B, K]; no gradient flows into it.
        target: labels [B].
        temperature: τ.
        tckd_weight: α.
        nckd_weight: β.

    Raises:
        ShapeError: shapes differ, or there is one class only.

    Source: Zhao et al. 2022, arXiv 2203.08679. Their code masks the target with −1000; here it is removed.
    """
    same_shape("dkd", student_logits, teacher_logits)
    batch, classes = student_logits.shape
    if classes < 2:
        raise ShapeError("dkd: needs at least two classes; use kd")
    is_target = functional.one_hot(target, classes).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        z = logits / temperature
        rest = z[~is_target].reshape(batch, classes - 1)
        binary = torch.stack([z[is_target], rest.logsumexp(dim=1)], dim=1)
        return functional.log_softmax(binary, dim=1), functional.log_softmax(rest, dim=1)

    student, teacher = split(student_logits), split(teacher_logits.detach())
    tckd, nckd = (
        functional.kl_div(s, t, reduction="batchmean", log_target=True) for s, t in zip(student, teacher, strict=True)
    )
    return (tckd_weight * tckd + nckd_weight * nckd) * temperature**2


@full_precision
def mutual(device_logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Deep mutual learning: each device learns from the answers of the others.

    τ² · mean over i of mean over j ≠ i of KL(p_j ‖ p_i), averaged over B. The teaching device gets no gradient.

    Args:
        device_logits: answer of each device alone, N ≥ 2 tensors [B, K].
        temperature: τ; 1 in the paper.

    Raises:
        ShapeError: there is one device only.

    Source: Zhang et al. 2018, arXiv 1706.00384; students there take turns, here all step at once.
    """
    count = len(device_logits)
    if count < 2:
        raise ShapeError("mutual: needs at least two devices")
    log_p = functional.log_softmax(torch.stack(list(device_logits)) / temperature, dim=2)  # [N, B, K]
    teacher = log_p.detach()
    p = teacher.exp()
    negative_entropy = (p * teacher).sum(dim=2)  # [N, B]
    others = (p.sum(dim=0) - p) / (count - 1)
    others_entropy = (negative_entropy.sum(dim=0) - negative_entropy) / (count - 1)
    return (others_entropy - (others * log_p).sum(dim=2)).mean() * temperature**2
