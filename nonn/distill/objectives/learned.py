"""Objectives with trainable parameters, separate for each device.

The parameters are trained with the students but are not part of them: they are next to them in the trained module, so
optimiser, checkpoints and resuming include them, and no exported student contains them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn.distill.objectives._common import full_precision, same_shape, unit
from nonn.distill.objectives.activations import activation_transfer
from nonn.teacher import pool

__all__ = ["Crd", "Simreg", "Srm", "Vid", "crd", "srm", "vid"]

_LEAST_VARIANCE = 1e-5


@full_precision
def vid(student: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Variational information distillation: Σ_c ½ log σ_c² + (T_c − S_c)² / (2 σ_c²).

    Args:
        student: features after the bridge, which is the paper's μ [B, C_j, …].
        teacher: [B, C_j, …]; no gradient flows into it.
        variance: σ² of each filter [C_j].

    Returns:
        Scalar, negative where filters are learned well: summed over features, averaged over B.

    Raises:
        ShapeError: shapes differ.

    Source: Ahn et al. 2019, arXiv 1904.05835; public code averages over features.
    """
    same_shape("vid", student, teacher)
    s2 = variance.reshape(-1, *[1] * (student.ndim - 2))
    nll = 0.5 * (s2.log() + (teacher.detach() - student).square() / s2)
    return nll.flatten(1).sum(dim=1).mean()


class Vid(nn.Module):
    """VID of one device; the final σ² show which filters the student cannot learn.

    Args:
        width: C_j.
        variance: initial σ².
    """

    def __init__(self, width: int, variance: float) -> None:
        super().__init__()
        start = max(variance - _LEAST_VARIANCE, _LEAST_VARIANCE)
        self.raw_variance = nn.Parameter(torch.full((width,), start + math.log(-math.expm1(-start))))

    def variance(self) -> Tensor:
        """σ² = softplus + 1e-5 of each filter [C_j]."""
        return functional.softplus(self.raw_variance.float()) + _LEAST_VARIANCE

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Scalar of maps [B, C_j, …] and labels [B]."""
        return vid(student, teacher, self.variance())


@full_precision
def crd(student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 0.07) -> Tensor:
    """Contrastive representation distillation with in-batch negatives.

    −log of the softmax of the matching pair among it and all pairs of other classes, student to teacher plus teacher
    to student, averaged over B.

    Args:
        student: projected features [B, dim]; brought to unit norm here.
        teacher: projected features [B, dim]; its projection learns too.
        target: labels [B]; samples of the same class are not negatives.
        temperature: t.

    Returns:
        Scalar ≥ 0; it grows with the batch, whose size is the number of negatives, and is not 0 for student == teacher.

    Source: Tian et al. 2020, arXiv 1910.10699. This is a variant: the paper's code draws 16,384 negatives for each
    sample from a memory of all training features and classifies pairs one by one (noise-contrastive estimation); here
    the negatives are the other classes of the batch, under one softmax. Without that memory only the weights must be
    stored. Results of the paper do not carry over to this term.
    """
    similarity = unit(student) @ unit(teacher).T / temperature
    same = (target[:, None] == target[None]) & ~torch.eye(len(target), dtype=torch.bool, device=target.device)
    similarity = similarity.masked_fill(same, -torch.inf)
    match = torch.arange(len(target), device=target.device)
    return functional.cross_entropy(similarity, match) + functional.cross_entropy(similarity.T, match)


class Crd(nn.Module):
    """CRD of one device, with a linear projection on either side.

    Args:
        width: C_j.
        dim: dimension of the common space.
        temperature: t.
    """

    def __init__(self, width: int, dim: int, temperature: float) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(width, dim), nn.Linear(width, dim)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Scalar of maps [B, C_j, …] and labels [B]."""
        projected = self.teacher(pool(teacher.detach()))
        return crd(self.student(pool(student)), projected, labels, self.temperature)


@full_precision
def srm(student_logits: Tensor, teacher: Tensor, dictionary: Tensor, top: int) -> Tensor:
    """Sparse representation matching: the student predicts which atoms the teacher's sparse codes use.

    The code ψ of a position has the ``top`` largest sigmoids of its products with the atoms. Cross entropy with the
    largest atom of each position, plus binary cross entropy with the ``top`` atoms of the image's mean code, plus
    the dictionary's own ‖T − Dψ‖². Positions count as samples, so everything is averaged over them and over B;
    binary cross entropies are summed over atoms and squares over filters.

    Args:
        student_logits: for each atom at each position [B, positions, A].
        teacher: maps of one part [B, C_j, …]; no gradient flows into it.
        dictionary: D [C_j, A]; only the reconstruction trains it.
        top: atoms in a code, of A.

    Returns:
        Scalar ≥ 0.

    Source: Tran et al. 2021, arXiv 2103.17012. This is a variant: their code learns the dictionary before the student;
    here it is learned in the same steps, so labels change at first: give the objective a warm-up. Their code has the
    pixel's cross entropy on sigmoids and the soft mean code as the image's label; here they are on a softmax and the
    ``top`` atoms of that code. Results of the paper do not carry over to this term.
    """
    t = teacher.detach().flatten(2).transpose(1, 2) if teacher.ndim > 2 else teacher.detach()[:, None]
    product = t @ dictionary  # [B, positions, A]
    similarity = product.sigmoid()
    kept = torch.zeros_like(similarity).scatter(2, product.topk(top, dim=2).indices, 1.0)
    code = similarity * kept
    reconstruction = (t - code @ dictionary.T).square().sum(dim=2).mean()
    pixel_label = product.argmax(dim=2)
    mean_code = code.mean(dim=1)
    image_label = torch.zeros_like(mean_code).scatter(1, mean_code.topk(top, dim=1).indices, 1.0)
    pixel = functional.cross_entropy(student_logits.flatten(0, 1), pixel_label.flatten())
    per_atom = functional.binary_cross_entropy_with_logits(student_logits.mean(dim=1), image_label, reduction="none")
    return reconstruction + pixel + per_atom.sum(dim=1).mean()


class Srm(nn.Module):
    """SRM of one device: the dictionary of the teacher, and the layer with which the student predicts atoms.

    Args:
        width: C_j.
        atoms: A.
        top: atoms in a code.
    """

    def __init__(self, width: int, atoms: int, top: int) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(functional.normalize(torch.randn(width, atoms), dim=0))
        self.student, self.top = nn.Linear(width, atoms), top

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Scalar of maps [B, C_j, …] and labels [B]."""
        s = student.float()
        positions = s.flatten(2).transpose(1, 2) if s.ndim > 2 else s[:, None]
        return srm(self.student(positions), teacher, self.dictionary, self.top)


class Simreg(nn.Module):
    """Regression through an MLP h: 2 − 2 cos(h(GAP(S)), GAP(T)), averaged over B, in [0, 4].

    This is activation transfer of the pooled features with h in between. A device sends the input of h, so h is dropped
    like every auxiliary; the paper also drops it after distillation.

    Args:
        width: C_j.
        hidden: width of h's hidden layer.

    Source: Navaneet et al. 2021, arXiv 2201.05131. Their h has batch normalisation and up to four layers; this one
    has two and none.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Scalar of maps [B, C_j, …] and labels [B]."""
        return activation_transfer(self.mlp(pool(student)), pool(teacher))
