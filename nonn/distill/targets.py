"""Label revision: the teacher's answer mixed with the label, as a target for any objective on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["revise_labels"]


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
