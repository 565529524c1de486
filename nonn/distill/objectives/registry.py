"""Every objective by its name in ``[distill.objectives]``: how it is built from its options, and its inputs.

An objective of nonn is added by one function, here or in its module, and by its options in ``nonn.config.objectives``;
docs/extending.md shows one outside of this package.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from torch import Tensor

from nonn.config import DistillConfig
from nonn.distill.objectives import (
    activations,
    adversarial,
    flow,
    information,
    learned,
    logits,
    online,
    pixels,
    points,
    relations,
    several,
    shots,
    soft,
    tails,
)
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import (
    OBJECTIVES,
    Compute,
    Objective,
    PerDevice,
    objective,
    on_logits,
    on_parts,
    summed,
    target,
)
from nonn.errors import ConfigError
from nonn.teacher import pool

__all__ = ["OBJECTIVES", "Compute", "Objective", "PerDevice", "objective_named"]

MODULES = (adversarial, information, online, pixels, points, shots, soft, tails)  # each has builders

_TAPS = ("student_taps", "teacher_taps")


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


@objective("ce")
def _ce(config: DistillConfig, widths: Sequence[int]) -> Compute:
    smoothing = config.label_smoothing
    return on_logits(config.objectives.ce, lambda s, _, labels: logits.cross_entropy(s, labels, smoothing))


@objective("kd")
def _kd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.kd

    def one(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        if c.standardise:
            student, teacher = logits.standardise(student), logits.standardise(teacher)
        return logits.kd(student, target(c, student, teacher, labels), c.temperature)

    return on_logits(c, one)


@objective("dkd")
def _dkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.dkd

    def one(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return logits.dkd(
            student, target(c, student, teacher, labels), labels, c.temperature, c.tckd_weight, c.nckd_weight
        )

    return on_logits(c, one)


@objective("mutual", "device_logits")
def _mutual(config: DistillConfig, widths: Sequence[int]) -> Compute:
    temperature = config.objectives.mutual.temperature
    return lambda b: len(b.device_logits) * logits.mutual(b.device_logits, temperature)


# ---- on the filters of a part ----------------------------------------------------------------------------------


@objective("transfer")
def _transfer(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.transfer

    def compute(batch: Batch) -> Tensor:
        student, teacher = list(batch.student_maps), list(batch.teacher_maps)
        if c.pooled:
            student, teacher = list(map(pool, student)), list(map(pool, teacher))
        if c.joint:
            return activations.joint_activation_transfer(student, teacher)
        return summed([activations.activation_transfer(s, t) for s, t in zip(student, teacher, strict=True)])

    return compute


@objective("hint")
def _hint(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return on_parts(activations.hint)


@objective("at")
def _at(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return on_parts(activations.at)


@objective("srrl", "classifier")
def _srrl(config: DistillConfig, widths: Sequence[int]) -> Compute:
    weight = config.objectives.srrl.feature_weight

    def compute(batch: Batch) -> Tensor:
        parts = zip(batch.student_maps, batch.teacher_maps, batch.classifier, strict=True)
        return summed([activations.srrl(s, t, w, weight) for s, t, w in parts])

    return compute


# ---- on the samples of a batch ---------------------------------------------------------------------------------


@objective("sp")
def _sp(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return on_parts(relations.sp)


@objective("rkd")
def _rkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.rkd
    return on_parts(lambda s, t: relations.rkd(s, t, c.distance_weight, c.angle_weight))


@objective("pkt")
def _pkt(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return on_parts(relations.pkt)


# ---- on several layers -----------------------------------------------------------------------------------------


@objective("fsp", *_TAPS)
def _fsp(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return lambda b: summed([flow.fsp((s[0], s[-1]), (t[0], t[-1])) for s, t in _layers(b)])


@objective("lckd", *_TAPS)
def _lckd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    iterations = config.objectives.lckd.iterations

    def compute(batch: Batch) -> Tensor:
        shared: dict[tuple[int, ...], list[Tensor]] = {}  # all devices have the same earlier layers of the teacher
        losses = []
        for student, teacher in _layers(batch):
            key = tuple(map(id, teacher[:-1]))
            if key not in shared:
                shared[key] = flow.layer_norms(teacher[:-1], iterations)
            norms = [*shared[key], *flow.layer_norms(teacher[-2:], iterations)]
            losses.append(flow.norm_distance(flow.layer_norms(student, iterations), norms))
        return summed(losses)

    return compute


# ---- with parameters -------------------------------------------------------------------------------------------


@objective("vid")
def _vid(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return PerDevice([learned.Vid(width, config.objectives.vid.variance) for width in widths])


@objective("crd")
def _crd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.crd
    return PerDevice([learned.Crd(width, c.dim, c.temperature) for width in widths])


@objective("srm")
def _srm(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.srm
    atoms = [max(2, math.ceil(width * c.atoms)) for width in widths]
    return PerDevice([learned.Srm(w, a, max(1, round(a * c.sparsity))) for w, a in zip(widths, atoms, strict=True)])


@objective("simreg")
def _simreg(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.simreg
    first = PerDevice([learned.Simreg(width, math.ceil(width * c.hidden)) for width in widths])
    return several.SimregTeachers(first, widths, c.teachers, c.hidden) if c.teachers else first


# ---- shared functions --------------------------------------------------------------------------------------------


def _layers(batch: Batch) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Layers that student and teacher both have, from input to the part's filters, for every device."""
    teacher = batch.teacher_taps or {}
    result = []
    for taps, last, part in zip(batch.student_taps, batch.student_maps, batch.teacher_maps, strict=True):
        names = [name for name in taps if name in teacher]
        result.append(([*(taps[n] for n in names), last], [*(teacher[n] for n in names), part]))
    return result
