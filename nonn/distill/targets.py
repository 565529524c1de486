"""Targets: the teacher's answer, changed before an objective on logits compares with it.

All functions return logits whose softmax at the objective's temperature is the changed answer, so they combine with any
objective on logits and with each other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["balance", "keep_top", "leave_out", "permute_others", "revise_labels"]


@torch.no_grad()
def revise_labels(
    teacher_logits: Tensor, target: Tensor, temperature: float, eta: float, *, only_wrong: bool = False
) -> Tensor:
    """Logits whose softmax at τ is p̃ = β p_T^τ + (1 − β) y, with β = η / (p_max − p_target + 1).

    With η < 1 the true class has the largest probability, no matter how wrong the teacher is, and the teacher's
    order among the other classes stays.

    Args:
        teacher_logits: logits [B, K].
        target: labels [B].
        temperature: τ of the objective that the result goes to.
        eta: η in (0, 1].
        only_wrong: leave answers whose most probable class is the label as they are.

    Returns:
        float32 [B, K], up to a constant for each sample: only its softmax has a meaning.

    Source: Lan et al. 2024, arXiv 2404.03693, whose formula revises all samples; public code revises the answers that
    the teacher gets wrong (``only_wrong``).
    """
    log_p = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    log_target = log_p.gather(1, target[:, None])
    gap = log_p.max(dim=1, keepdim=True).values.exp() - log_target.exp()
    beta = eta / (gap + 1)
    revised = beta.log() + log_p
    # Log-sum-exp, so that a class excluded by the teacher still has a finite logit.
    truth = torch.logaddexp(beta.log() + log_target, torch.log1p(-beta))
    revised = revised.scatter(1, target[:, None], truth) * temperature
    if only_wrong:
        right = teacher_logits.argmax(dim=1) == target
        revised = torch.where(right[:, None], teacher_logits.float(), revised)
    return revised


@torch.no_grad()
def keep_top(teacher_logits: Tensor, k: int, temperature: float) -> Tensor:
    """KD top-k: the k most probable classes keep their probability, and the others share the rest equally.

    Args:
        teacher_logits: [B, K].
        k: number of classes that stay; K or more changes nothing.
        temperature: τ of the objective that the result goes to.

    Returns:
        float32 [B, K].

    Source: Tang et al. 2020, arXiv 2002.03532, "KD-topk", where the first k classes stand for what the teacher knows
    about relations between classes. That the others share the rest equally is recalled, not checked.
    """
    z = teacher_logits.float()
    if k >= z.shape[1]:
        return z
    kept = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.topk(k, dim=1).indices, True)
    rest = (z / temperature).masked_fill(kept, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.where(kept, z, (rest - math.log(z.shape[1] - k)) * temperature)


@torch.no_grad()
def balance(teacher_logits: Tensor, class_counts: Tensor, temperature: float, beta: float) -> Tensor:
    """Balanced KD: logits of q ∝ p_T^τ ⊙ w with w_k = (1 − β) / (1 − β^n_k), for data with rare classes.

    Args:
        teacher_logits: [B, K].
        class_counts: number n_k of training samples of each class [K]; 0 counts as 1.
        temperature: τ of the objective that the result goes to.
        beta: β in [0, 1); 0 changes nothing, and 1 would weigh by 1 / n_k.

    Returns:
        float32 [B, K], up to a constant for each sample. So w needs no scale; the paper scales it to sum K.

    Source: Zhang et al. 2021, arXiv 2104.10510, with the effective numbers of Cui et al. 2019, arXiv 1901.05555.
    """
    effective = (
        -torch.expm1(class_counts.double().clamp_min(1) * math.log(beta)) if beta else class_counts.double() ** 0
    )
    return teacher_logits.float() - temperature * effective.log().float()


@torch.no_grad()
def permute_others(teacher_logits: Tensor, noise: Tensor) -> Tensor:
    """DKPP, dark knowledge with permuted predictions: all classes but the most probable one are permuted at random.

    What a student then gains is not the teacher's relations between classes.

    Args:
        teacher_logits: [B, K].
        noise: random numbers ≥ 0 [B, K], whose order is the permutation.

    Source: Furlanello et al. 2018, arXiv 1805.04770, recalled.
    """
    z, batch = teacher_logits.float(), len(teacher_logits)
    first = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.argmax(dim=1, keepdim=True), True)
    place = torch.arange(z.shape[1], device=z.device).expand(batch, -1).masked_fill(first, -1).argsort(dim=1)
    drawn = noise.masked_fill(first, -1.0).argsort(dim=1)
    return z.scatter(1, place, z.gather(1, drawn))


@torch.no_grad()
def leave_out(
    target_logits: Tensor, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, share: float
) -> Tensor:
    """Data selection: samples that the teacher gets most wrong have no soft target.

    Their target is the student's own answer, so that any divergence from it, and its gradient, are 0; objectives on the
    labels still use them.

    Args:
        target_logits: [B, K].
        student_logits: [B, K].
        teacher_logits: [B, K].
        labels: [B].
        share: share of the batch that is left out, rounded down: the samples with the teacher's largest cross entropy.

    Source: a substitute for the influence score of Lan et al. 2024, arXiv 2404.03693, which was not reachable: the
    largest cross entropy of each batch. It depends on the batch.
    """
    count = int(share * len(labels))
    worst = functional.cross_entropy(teacher_logits.float(), labels, reduction="none").topk(count).indices
    return target_logits.float().index_copy(0, worst, student_logits.detach().float()[worst])
