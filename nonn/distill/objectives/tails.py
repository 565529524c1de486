"""An objective for data in which some classes are rare: gcl. ``bkd`` in ``soft`` is another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nonn.config import DistillConfig
from nonn.distill.objectives._common import full_precision
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import Compute, objective, on_logits

__all__ = ["clouds", "gcl"]

_SD, _MOST = 1 / 3, 1.0  # of ε, and its bound


@torch.no_grad()
def clouds(class_counts: Tensor, noise: Tensor) -> Tensor:
    """|ε| · (ln n_max − ln n_k) / (ln n_max − ln n_min): nothing for the most frequent class, most for the rarest.

    Args:
        class_counts: n, training samples of each class [K]; a class without any counts as one with one.
        noise: uniform in [0, 1) [B, K]; becomes ε, normal with standard deviation 1/3, clamped to ±1.

    Returns:
        [B, K] in [0, 1]; 0 for balanced classes.
    """
    epsilon = (_SD * math.sqrt(2) * torch.erfinv(2 * noise.double() - 1)).clamp(-_MOST, _MOST).abs()
    log_n = class_counts.clamp_min(1).double().log()
    rarity = (log_n.max() - log_n) / (log_n.max() - log_n.min()).clamp_min(1e-9)
    return (epsilon * rarity).float()


@full_precision
def gcl(student_logits: Tensor, cloud: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Gaussian clouded logits: cross entropy of z_k − scale · cloud_k.

    Args:
        student_logits: [B, K].
        cloud: result of ``clouds`` [B, K].
        labels: [B].
        scale: s·ν, 30 · 0.5 in the paper.

    Returns:
        Scalar ≥ 0, averaged over B.

    Source: Li, Cheung, Lu 2022 (CVPR, "Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment"). Their
    logits are 30 times cosines; here they are those of the fusion, without bound. Their classifier is then fitted again
    with class-balanced sampling: ``fusion.balanced``.
    """
    return functional.cross_entropy(student_logits - scale * cloud, labels)


@objective("gcl", "class_counts", "noise")
def _gcl(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.gcl

    def cloud(batch: Batch) -> Tensor:
        assert batch.class_counts is not None
        assert batch.noise is not None
        return clouds(batch.class_counts, batch.noise)

    return on_logits(c, lambda s, seen, labels: gcl(s, seen, labels, c.scale), cloud)
