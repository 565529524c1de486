"""Every objective by its name in ``[distill.objectives]``: how it is built from its options, and its inputs.

An objective is added here by one function, and by its options in ``nonn.config.objectives``. Losses of single devices
are summed over devices: a student then learns as fast as it would alone, for any number of devices. A mean would divide
its learning rate by N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.config.objectives import DkdConfig, KdConfig
from nonn.distill.objectives import activations, flow, learned, logits, relations
from nonn.distill.objectives.batch import Batch
from nonn.distill.targets import revise_labels
from nonn.teacher import pool

__all__ = ["OBJECTIVES", "Compute", "Objective", "PerDevice"]

Compute = Callable[[Batch], Tensor]
Build = Callable[[DistillConfig, Sequence[int]], Compute]


@dataclass(frozen=True)
class Objective:
    """One entry of the registry.

    Attributes:
        build: (configuration, filters of each device's part [N]) → the function of a batch, a module where the
            objective has parameters.
        needs: fields of ``Batch`` that it uses in addition to the first five.
    """

    build: Build
    needs: tuple[str, ...] = ()


OBJECTIVES: dict[str, Objective] = {}
_TAPS = ("student_taps", "teacher_taps")


def _objective(name: str, *needs: str) -> Callable[[Build], Build]:
    """Registers a builder."""

    def register(build: Build) -> Build:
        OBJECTIVES[name] = Objective(build, needs)
        return build

    return register


# ---- on logits -------------------------------------------------------------------------------------------------


@_objective("ce")
def _ce(config: DistillConfig, widths: Sequence[int]) -> Compute:
    on, smoothing = config.objectives.ce.on, config.label_smoothing
    return lambda b: _sum([logits.cross_entropy(s, b.labels, smoothing) for s, _ in _pairs(on, b)])


@_objective("kd")
def _kd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.kd

    def compute(batch: Batch) -> Tensor:
        pairs = _pairs(c.on, batch)
        if c.standardise:
            pairs = [(logits.standardise(s), logits.standardise(t)) for s, t in pairs]
        return _sum([logits.kd(s, _target(c, t, batch), c.temperature) for s, t in pairs])

    return compute


@_objective("dkd")
def _dkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.dkd

    def one(batch: Batch, student: Tensor, teacher: Tensor) -> Tensor:
        target = _target(c, teacher, batch)
        return logits.dkd(student, target, batch.labels, c.temperature, c.tckd_weight, c.nckd_weight)

    return lambda b: _sum([one(b, s, t) for s, t in _pairs(c.on, b)])


@_objective("mutual", "device_logits")
def _mutual(config: DistillConfig, widths: Sequence[int]) -> Compute:
    temperature = config.objectives.mutual.temperature
    return lambda b: len(b.device_logits) * logits.mutual(b.device_logits, temperature)


# ---- on the filters of a part ----------------------------------------------------------------------------------


@_objective("transfer")
def _transfer(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.transfer

    def compute(batch: Batch) -> Tensor:
        student, teacher = list(batch.student_maps), list(batch.teacher_maps)
        if c.pooled:
            student, teacher = list(map(pool, student)), list(map(pool, teacher))
        if c.joint:
            return activations.joint_activation_transfer(student, teacher)
        return _sum([activations.activation_transfer(s, t) for s, t in zip(student, teacher, strict=True)])

    return compute


@_objective("hint")
def _hint(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return _on_parts(activations.hint)


@_objective("at")
def _at(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return _on_parts(activations.at)


@_objective("srrl", "classifier")
def _srrl(config: DistillConfig, widths: Sequence[int]) -> Compute:
    weight = config.objectives.srrl.feature_weight

    def compute(batch: Batch) -> Tensor:
        parts = zip(batch.student_maps, batch.teacher_maps, batch.classifier, strict=True)
        return _sum([activations.srrl(s, t, w, weight) for s, t, w in parts])

    return compute


# ---- on the samples of a batch ---------------------------------------------------------------------------------


@_objective("sp")
def _sp(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return _on_parts(relations.sp)


@_objective("rkd")
def _rkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.rkd
    return _on_parts(lambda s, t: relations.rkd(s, t, c.distance_weight, c.angle_weight))


@_objective("pkt")
def _pkt(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return _on_parts(relations.pkt)


# ---- on several layers -----------------------------------------------------------------------------------------


@_objective("fsp", *_TAPS)
def _fsp(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return lambda b: _sum([flow.fsp((s[0], s[-1]), (t[0], t[-1])) for s, t in _layers(b)])


@_objective("lckd", *_TAPS)
def _lckd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    iterations = config.objectives.lckd.iterations

    def compute(batch: Batch) -> Tensor:
        shared: dict[tuple[int, ...], list[Tensor]] = {}  # all devices have the same earlier layers of the teacher
        losses = []
        for student, teacher in _layers(batch):
            key = tuple(map(id, teacher[:-1]))
            if key not in shared:
                shared[key] = flow.layer_norms(teacher[:-1], iterations)
            target = [*shared[key], *flow.layer_norms(teacher[-2:], iterations)]
            losses.append(flow.norm_distance(flow.layer_norms(student, iterations), target))
        return _sum(losses)

    return compute


# ---- with parameters -------------------------------------------------------------------------------------------


class PerDevice(nn.Module):
    """An objective with separate parameters for every device, summed over devices.

    Args:
        devices: (student maps, teacher maps, labels) → scalar, one a device [N].
    """

    def __init__(self, devices: Sequence[nn.Module]) -> None:
        super().__init__()
        self.devices = nn.ModuleList(devices)

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        pairs = zip(self.devices, batch.student_maps, batch.teacher_maps, strict=True)
        return _sum([device(s, t, batch.labels) for device, s, t in pairs])


@_objective("vid")
def _vid(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return PerDevice([learned.Vid(width, config.objectives.vid.variance) for width in widths])


@_objective("crd")
def _crd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.crd
    return PerDevice([learned.Crd(width, c.dim, c.temperature) for width in widths])


@_objective("srm")
def _srm(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.srm
    atoms = [max(2, math.ceil(width * c.atoms)) for width in widths]
    return PerDevice([learned.Srm(w, a, max(1, round(a * c.sparsity))) for w, a in zip(widths, atoms, strict=True)])


@_objective("simreg")
def _simreg(config: DistillConfig, widths: Sequence[int]) -> Compute:
    hidden = config.objectives.simreg.hidden
    return PerDevice([learned.Simreg(width, math.ceil(width * hidden)) for width in widths])


# ---- shared functions --------------------------------------------------------------------------------------------


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def _on_parts(objective: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    """An objective on one part's maps, summed over devices."""
    return lambda b: _sum([objective(s, t) for s, t in zip(b.student_maps, b.teacher_maps, strict=True)])


def _pairs(on: str, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Pairs of student and teacher logits [B, K] over which a logit objective is summed."""
    if on != "partial":
        fused = [batch.fused] if on in ("fused", "both") else []
        alone = batch.device_logits if on in ("device", "both") else ()
        return [(answer, batch.teacher_logits) for answer in [*fused, *alone]]
    parts = zip(batch.student_maps, batch.teacher_maps, batch.classifier, strict=True)
    return [(activations.partial_logits(s, w), activations.partial_logits(t, w)) for s, t, w in parts]


def _target(config: KdConfig | DkdConfig, teacher: Tensor, batch: Batch) -> Tensor:
    """The teacher's logits, with label revision if configured."""
    if not config.label_revision:
        return teacher
    eta, only_wrong = config.label_revision, config.only_wrong
    return revise_labels(teacher, batch.labels, config.temperature, eta, only_wrong=only_wrong)


def _layers(batch: Batch) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Layers that student and teacher both have, from input to the part's filters, for every device."""
    teacher = batch.teacher_taps or {}
    result = []
    for taps, last, target in zip(batch.student_taps, batch.student_maps, batch.teacher_maps, strict=True):
        names = [name for name in taps if name in teacher]
        result.append(([*(taps[n] for n in names), last], [*(teacher[n] for n in names), target]))
    return result
