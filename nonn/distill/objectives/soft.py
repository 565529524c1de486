"""Objectives on logits [B, K] that change or weigh the teacher's answer: bkd, dkpp, cwtm, dtd.

Each is KD or cross entropy with one change, and has the options of both: the answers that it is ``on``, and for soft
targets top-k, label revision and data selection. Targets are changed in ``nonn.distill.targets``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from nonn.config import DistillConfig
from nonn.distill.objectives._common import full_precision, same_shape, unit
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import Compute, kd_from, objective, on_logits, target
from nonn.distill.targets import balance, permute_others

__all__ = ["cwtm", "dtd"]

_LEAST_TEMPERATURE = 1.0


@full_precision
def cwtm(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Confidence-weighted by teacher max: Σ_b w_b · CE_b with w_b = max p_T(b) / Σ_batch max p_T.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; only its largest probability matters, and no gradient flows into it.
        labels: [B].

    Returns:
        Scalar ≥ 0; it depends on the batch, and is the cross entropy of a teacher that is equally sure of all samples.

    Raises:
        ShapeError: shapes differ.

    Source: Furlanello et al. 2018, arXiv 1805.04770, recalled.
    """
    same_shape("cwtm", student_logits, teacher_logits)
    weight = functional.softmax(teacher_logits.detach(), dim=1).amax(dim=1)
    return (weight / weight.sum() * functional.cross_entropy(student_logits, labels, reduction="none")).sum()


@full_precision
def dtd(student_logits: Tensor, teacher_logits: Tensor, temperature: float, gamma: float, beta: float) -> Tensor:
    """Dynamic temperature distillation: mean_b τ_b² · KL(p_T^τ_b ‖ p_S^τ_b), softer where the student agrees.

    w_b = (1 − cos(z_S, z_T))^γ and τ_b = τ_0 + β (mean w − w_b): samples that differ more from the teacher get a
    lower temperature, hence a sharper target.

    Args:
        student_logits: [B, K]; no gradient flows through τ_b.
        teacher_logits: [B, K]; no gradient flows into it.
        temperature: τ_0.
        gamma: γ.
        beta: β.

    Returns:
        Scalar ≥ 0; it depends on the batch, through the mean of w.

    Raises:
        ShapeError: shapes differ.

    Source: Wen et al. 2019, arXiv 1911.07471, weights of the focal style. The formula of MiDTD was not reachable: this
    stands for it. τ_b is at least 1 here, and τ_b² is in the mean.
    """
    same_shape("dtd", student_logits, teacher_logits)
    teacher = teacher_logits.detach()
    apart = (1 - (unit(student_logits.detach()) * unit(teacher)).sum(dim=1)).clamp_min(0) ** gamma
    tau = (temperature + beta * (apart.mean() - apart)).clamp_min(_LEAST_TEMPERATURE)[:, None]
    log_p, log_q = (functional.log_softmax(z / tau, dim=1) for z in (teacher, student_logits))
    return (tau.square() * functional.kl_div(log_q, log_p, reduction="none", log_target=True)).sum(dim=1).mean()


@objective("bkd", "class_counts")
def _bkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.bkd

    def balanced(batch: Batch) -> Tensor:
        assert batch.class_counts is not None
        return balance(batch.teacher_logits, batch.class_counts, c.temperature, c.beta)

    return kd_from(c, balanced)


@objective("dkpp", "noise")
def _dkpp(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.dkpp

    def permuted(batch: Batch) -> Tensor:
        assert batch.noise is not None
        return permute_others(batch.teacher_logits, batch.noise)

    return kd_from(c, permuted)


@objective("cwtm")
def _cwtm(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return on_logits(config.objectives.cwtm, cwtm)


@objective("dtd")
def _dtd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.dtd

    def one(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return dtd(student, target(c, student, teacher, labels), c.temperature, c.gamma, c.beta)

    return on_logits(c, one)
