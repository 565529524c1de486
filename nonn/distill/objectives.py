"""Distillation objectives as composable terms.

A term is a function of a ``Batch``; the trainer minimises the weighted sum. Every objective sums over feature
dimensions and averages over the batch, and lets no gradient into the teacher. KL divided by B · K instead of B, a
mistake of several public codes, is 100 times too small on 100 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nonn.config import DistillConfig
from nonn.errors import ShapeError

__all__ = ["Batch", "Term", "activation_transfer", "build_terms", "cross_entropy", "joint_activation_transfer", "kd"]

_EPS = 1e-6  # added to squared norms: a collapsed feature has a zero gradient instead of an infinite one


@dataclass(frozen=True)
class Batch:
    """What one step of distillation produced.

    Attributes:
        labels: [B].
        fused: logits of the fused answer [B, K].
        teacher_logits: [B, K].
        student_maps: feature maps of each device after its bridge, N tensors [B, C_j, …].
        teacher_maps: the teacher's filters of each device's part, N tensors [B, C_j, …].
    """

    labels: Tensor
    fused: Tensor
    teacher_logits: Tensor
    student_maps: Sequence[Tensor]
    teacher_maps: Sequence[Tensor]


Term = Callable[[Batch], Tensor]


def build_terms(config: DistillConfig) -> dict[str, Term]:
    """The weighted terms that a configuration asks for, by name; those of weight 0 are left out."""

    def transfer(batch: Batch) -> Tensor:
        if config.transfer_joint:
            return joint_activation_transfer(batch.student_maps, batch.teacher_maps)
        pairs = zip(batch.student_maps, batch.teacher_maps, strict=True)
        return torch.stack([activation_transfer(s, t) for s, t in pairs]).mean()

    weighted: dict[str, tuple[float, Term]] = {
        "ce": (config.ce_weight, lambda b: cross_entropy(b.fused, b.labels)),
        "kd": (config.kd_weight, lambda b: kd(b.fused, b.teacher_logits, config.kd_temperature)),
        "transfer": (config.transfer_weight, transfer),
    }
    return {name: _scaled(weight, term) for name, (weight, term) in weighted.items() if weight}


def _scaled(weight: float, term: Term) -> Term:
    return lambda batch: weight * term(batch)


def cross_entropy(student_logits: Tensor, target: Tensor) -> Tensor:
    """−log p(target), averaged over B, of logits [B, K] and labels [B]."""
    return functional.cross_entropy(student_logits.float(), target)


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
    _same_shape("kd", student_logits, teacher_logits)
    student = functional.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def activation_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the unit-norm activations of one part.

    Args:
        student: features after the bridge [B, C_j, …].
        teacher: the teacher's filters of the same part [B, C_j, …]; no gradient flows into it.

    Returns:
        Scalar in [0, 4]: summed over features, averaged over B.

    Raises:
        ShapeError: shapes differ.

    Source: Bhardwaj et al. 2019, arXiv 1907.11804; their code averages over features and normalises all parts jointly
    (``joint_activation_transfer``).
    """
    _same_shape("activation transfer", student, teacher)
    s, t = student.float().flatten(1), teacher.detach().float().flatten(1)
    return (_unit(s) - _unit(t)).square().sum(dim=1).mean()


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


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().sum(dim=1, keepdim=True) + _EPS).rsqrt()


def _same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ShapeError(f"{name}: student {list(student.shape)} and teacher {list(teacher.shape)} must agree")
