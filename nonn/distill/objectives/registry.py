"""Every objective by its name in ``[distill.objectives]``: how it is built from its options, and its inputs.

An objective of nonn is added here by one function, and by its options in ``nonn.config.objectives``; docs/extending.md
shows one outside of this package. Losses of single devices
are summed over devices: a student then learns as fast as it would alone, for any number of devices. A mean would divide
its learning rate by N.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.config.objectives import DkdConfig, KdConfig, LogitConfig
from nonn.distill.objectives import activations, flow, learned, logits, relations
from nonn.distill.objectives.batch import Batch
from nonn.distill.targets import revise_labels
from nonn.errors import ConfigError
from nonn.teacher import pool
from nonn.toml import Registry

__all__ = ["OBJECTIVES", "Compute", "Objective", "PerDevice", "objective_named"]

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


OBJECTIVES: Registry[Objective | Callable[..., Any]] = Registry("nonn.objectives", {})
_TAPS = ("student_taps", "teacher_taps")


def _objective(name: str, *needs: str) -> Callable[[Build], Build]:
    """Registers a builder."""

    def register(build: Build) -> Build:
        OBJECTIVES[name] = Objective(build, needs)
        return build

    return register


def objective_named(name: str, config: DistillConfig) -> Objective:
    """An objective of nonn, of an installed package, or by ``package.module:name``.

    One outside of nonn is an ``Objective``, a function of a ``Batch`` and options, or a class of ``torch.nn.Module``
    that is built with the filters of each device's part [N] and options, and called with a ``Batch``. Function and
    class may have an attribute ``needs``, see ``Objective``.

    Raises:
        ConfigError: there is no such objective, or it is none of these.
    """
    found = OBJECTIVES.load(name, "distill.objectives")
    if isinstance(found, Objective):
        return found
    if not callable(found):
        raise ConfigError(f"distill.objectives: '{name}' is a {type(found).__name__}, not a function of a batch")
    function, args, needs = found, config.objectives.others[name].args, tuple(getattr(found, "needs", ()))
    if isinstance(function, type):
        return Objective(lambda _, widths: function(widths, **args), needs)
    return Objective(lambda _, widths: functools.partial(function, **args), needs)


# ---- on logits -------------------------------------------------------------------------------------------------


@_objective("ce")
def _ce(config: DistillConfig, widths: Sequence[int]) -> Compute:
    smoothing = config.label_smoothing
    return _on_logits(config.objectives.ce, lambda s, _, labels: logits.cross_entropy(s, labels, smoothing))


@_objective("kd")
def _kd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.kd

    def one(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        if c.standardise:
            student, teacher = logits.standardise(student), logits.standardise(teacher)
        return logits.kd(student, _target(c, teacher, labels), c.temperature)

    return _on_logits(c, one)


@_objective("dkd")
def _dkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.dkd

    def one(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return logits.dkd(student, _target(c, teacher, labels), labels, c.temperature, c.tckd_weight, c.nckd_weight)

    return _on_logits(c, one)


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


def _on_logits(config: LogitConfig, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Compute:
    """A loss of student logits, teacher logits and labels, summed over the answers that ``on`` names."""

    def compute(b: Batch) -> Tensor:
        if config.on == "partial":
            parts = zip(b.student_maps, b.teacher_maps, b.classifier, strict=True)
            pairs = [(activations.partial_logits(s, w), activations.partial_logits(t, w)) for s, t, w in parts]
            return _sum([loss(s, t, b.labels) for s, t in pairs])
        losses = []
        if config.on in ("fused", "both"):
            subsets = len(b.fused) // len(b.labels)
            losses.append(loss(b.fused, b.teacher_logits.repeat(subsets, 1), b.labels.repeat(subsets)))
        if config.on in ("device", "both"):
            losses += [config.device_weight * loss(s, b.teacher_logits, b.labels) for s in b.device_logits]
        return _sum(losses)

    return compute


def _target(config: KdConfig | DkdConfig, teacher: Tensor, labels: Tensor) -> Tensor:
    """The teacher's logits, with label revision if configured."""
    if not config.label_revision:
        return teacher
    eta, only_wrong = config.label_revision, config.only_wrong
    return revise_labels(teacher, labels, config.temperature, eta, only_wrong=only_wrong)


def _layers(batch: Batch) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Layers that student and teacher both have, from input to the part's filters, for every device."""
    teacher = batch.teacher_taps or {}
    result = []
    for taps, last, target in zip(batch.student_taps, batch.student_maps, batch.teacher_maps, strict=True):
        names = [name for name in taps if name in teacher]
        result.append(([*(taps[n] for n in names), last], [*(teacher[n] for n in names), target]))
    return result
