"""Label revision: the teacher's answer with the truth mixed in, as a target for any objective on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["revise_labels"]


@torch.no_grad()
def revise_labels(teacher_logits: Tensor, target: Tensor, temperature: float, eta: float) -> Tensor:
    """Logits whose softmax at τ is p̃ = β p_T^τ + (1 − β) y, with β = η / (p_max − p_target + 1).

    With η < 1 the true class has the largest probability of all, however wrong the teacher is, and the teacher's
    order among the other classes stays.

    Args:
        teacher_logits: [B, K].
        target: labels [B].
        temperature: τ of the objective that the result goes to.
        eta: η in (0, 1].

    Returns:
        float32 [B, K], at a mean of its own: only its softmax has a meaning.

    Source: Lan et al. 2024, arXiv 2404.03693; they keep all samples' revised labels, and so is it here.
    """
    log_p = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    log_target = log_p.gather(1, target[:, None])
    gap = log_p.max(dim=1, keepdim=True).values.exp() - log_target.exp()
    beta = eta / (gap + 1)
    revised = beta.log() + log_p
    # The logarithm of a sum of exponentials, so that a class the teacher rules out is still a finite logit.
    truth = torch.logaddexp(beta.log() + log_target, torch.log1p(-beta))
    return revised.scatter(1, target[:, None], truth) * temperature
