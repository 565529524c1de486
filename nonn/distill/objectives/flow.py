"""Objectives on the relation between the activations of layers: they need two layers or more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from nonn.distill.objectives._common import full_precision, matched, root
from nonn.errors import ShapeError

__all__ = ["fsp", "layer_norms", "lckd", "norm_distance", "spectral_norm", "transmitting"]


@full_precision
def transmitting(first: Tensor, second: Tensor) -> Tensor:
    """G_ab = mean over positions of F1_a · F2_b, for maps [B, C_1, …] and [B, C_2, …] → [B, C_1, C_2].

    The finer of the two is averaged to the resolution of the other.
    """
    a, b = matched(first, second)
    return a @ b.transpose(1, 2) / a.shape[2]


@full_precision
def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Flow of the solution procedure: ‖G_T − G_S‖_F², averaged over B.

    Args:
        student: maps of two of its layers [B, C_1, …] and [B, C_2, …].
        teacher: maps of two of its layers with as many filters; no gradient flows into them.

    Raises:
        ShapeError: the numbers of filters differ.

    Source: Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR; public code averages over C_1 · C_2.
    """
    s, t = transmitting(*student), transmitting(*(m.detach() for m in teacher))
    if s.shape != t.shape:
        raise ShapeError(
            f"fsp: student layers of {list(s.shape[1:])} filters and teacher layers of {list(t.shape[1:])} must agree; "
            "choose students whose first layer is as wide as the teacher's, such as "
            "student.model = 'staged-wrn-10-1x0.25x0.25'; lckd compares layers of any widths"
        )
    return (s - t).square().sum(dim=(1, 2)).mean()


def lckd(student: Sequence[Tensor], teacher: Sequence[Tensor], iterations: int = 5) -> Tensor:
    """Lipschitz continuity: Σ_l 2^−(L−1−l) · (σ_max(TM_S^l) − σ_max(TM_T^l))², averaged over B.

    TM^l [C_l, C_l+1] is the transmitting matrix between layers l and l + 1 of L + 1, so only spectral norms must agree,
    and widths may differ.

    Args:
        student: maps of its layers from input to output, L + 1 tensors [B, C_l, …].
        teacher: the same of the teacher; no gradient flows into them.
        iterations: iterations of the power method, see ``spectral_norm``.

    Raises:
        ShapeError: there are fewer than two layers, or not as many of both.

    Source: Shang et al. 2021, arXiv 2108.12905. Their code computes the norm without gradient, so it trains nothing.
    """
    return norm_distance(layer_norms(student, iterations), layer_norms(teacher, iterations))


def layer_norms(layers: Sequence[Tensor], iterations: int = 5) -> list[Tensor]:
    """σ_max of the transmitting matrix of each two neighbours, L tensors [B], of L + 1 layers' maps [B, C_l, …]."""
    return [spectral_norm(transmitting(a, b), iterations) for a, b in itertools.pairwise(layers)]


@full_precision
def norm_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Σ_l 2^−(L−1−l) · (σ_S^l − σ_T^l)², averaged over B, of L tensors [B] each; no gradient flows into the teacher's.

    Raises:
        ShapeError: there are none, or not as many of both.
    """
    if len(student) != len(teacher) or not student:
        raise ShapeError(f"lckd: {len(student)} student and {len(teacher)} teacher norms; needs as many, at least one")
    s, t = torch.stack(list(student)), torch.stack(list(teacher)).detach()  # [L, B]
    weight = 0.5 ** torch.arange(len(s) - 1, -1, -1, device=s.device)
    return (weight @ (s - t).square()).mean()


@full_precision
def spectral_norm(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Largest singular value of each matrix, with its gradient.

    The power method finds the left singular vector u without gradient; then σ = ‖Kᵀu‖ has the exact gradient u vᵀ.

    Args:
        matrix: K [B, m, n].
        iterations: each one squares the Gram matrix, so that i of them are 2^i steps of the power method.

    Returns:
        σ_max [B], from below.
    """
    k = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.transpose(1, 2)
    with torch.no_grad():
        powers = k @ k.transpose(1, 2)
        for _ in range(iterations):
            powers = powers / powers.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
            powers = powers @ powers
        # A fixed random direction: no matrix of a trained network is orthogonal to it.
        start = torch.randn(k.shape[1], 1, generator=torch.Generator().manual_seed(0)).to(k.device)
        u = powers @ start
        u = u / u.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return root((k.transpose(1, 2) @ u).square().sum(dim=(1, 2)))
