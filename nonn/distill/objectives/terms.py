"""From configuration to weighted terms of the loss.

A term is a function of a ``Batch``; the trainer minimises the sum of all terms. What an objective asks of each device
is summed over devices: a student learns from its own share as fast as it would by itself, however many learn beside
it. A mean would divide its rate of learning by N. Objectives with parameters of their own are modules; ``auxiliaries``
gathers them for the trained module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.config.objectives import DkdConfig, KdConfig, LogitConfig
from nonn.distill.objectives import activations, flow, learned, logits, relations
from nonn.distill.objectives.batch import Batch
from nonn.distill.targets import revise_labels
from nonn.errors import ConfigError

__all__ = ["PerDevice", "Term", "auxiliaries", "build_terms"]

Compute = Callable[[Batch], Tensor]
Builder = Callable[[DistillConfig, Sequence[int]], Compute]


@dataclass(frozen=True)
class Term:
    """One weighted objective.

    Attributes:
        weight: of the objective after its warm-up.
        warm_up: share of all steps over which the weight rises linearly from 0.
        compute: the objective itself; a module where it has parameters.
        needs: fields of ``Batch`` that it looks at beside the first five.
        whole: whether it looks at the fused answer only, so that it suits one network as well as many.
    """

    weight: float
    warm_up: float
    compute: Compute
    needs: frozenset[str] = frozenset()
    whole: bool = False

    def __call__(self, batch: Batch) -> Tensor:
        """The weighted loss of a batch, a scalar."""
        share = min(1.0, batch.progress / self.warm_up) if self.warm_up else 1.0
        return self.weight * share * self.compute(batch)


class PerDevice(nn.Module):
    """An objective with parameters of its own for every device, summed over devices.

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


def build_terms(config: DistillConfig, widths: Sequence[int] = ()) -> dict[str, Term]:
    """The weighted terms that a configuration asks for, by name; those of weight 0 are left out.

    Args:
        config: weights and options.
        widths: filters of each device's part [N]; objectives with parameters are built for them.

    Raises:
        ConfigError: mutual learning of a single device.
    """
    terms: dict[str, Term] = {}
    for name, (builder, needs) in _BUILDERS.items():
        objective = getattr(config.objectives, name)
        if not objective.weight:
            continue
        if name == "mutual" and len(widths) == 1:
            raise ConfigError("distill.objectives.mutual: one device has nobody to learn from; set its weight to 0")
        on = objective.on if isinstance(objective, LogitConfig) else ""
        terms[name] = Term(
            objective.weight,
            objective.warm_up,
            builder(config, widths),
            frozenset(needs) | frozenset(_ON.get(on, ())),
            on in ("fused", "both"),
        )
    return terms


def auxiliaries(terms: dict[str, Term]) -> nn.ModuleDict:
    """The parameters of objectives, by the objective's name."""
    return nn.ModuleDict({name: term.compute for name, term in terms.items() if isinstance(term.compute, nn.Module)})


def _answers(on: str, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Pairs of student and teacher logits [B, K] that a logit objective is summed over."""
    if on != "partial":
        fused = [batch.fused] if on in ("fused", "both") else []
        own = batch.own_logits if on in ("own", "both") else ()
        return [(answer, batch.teacher_logits) for answer in [*fused, *own]]
    parts = zip(batch.student_maps, batch.teacher_maps, batch.classifier, strict=True)
    return [(activations.partial_logits(s, w), activations.partial_logits(t, w)) for s, t, w in parts]


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def _ce(config: DistillConfig, widths: Sequence[int]) -> Compute:
    on, smoothing = config.objectives.ce.on, config.label_smoothing
    return lambda b: _sum([logits.cross_entropy(s, b.labels, smoothing) for s, _ in _answers(on, b)])


def _kd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.kd

    def compute(batch: Batch) -> Tensor:
        pairs = _answers(c.on, batch)
        if c.standardise:
            pairs = [(logits.standardise(s), logits.standardise(t)) for s, t in pairs]
        return _sum([logits.kd(s, _target(c, t, batch), c.temperature) for s, t in pairs])

    return compute


def _dkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.dkd

    def one(batch: Batch, student: Tensor, teacher: Tensor) -> Tensor:
        target = _target(c, teacher, batch)
        return logits.dkd(student, target, batch.labels, c.temperature, c.tckd_weight, c.nckd_weight)

    return lambda b: _sum([one(b, s, t) for s, t in _answers(c.on, b)])


def _target(config: KdConfig | DkdConfig, teacher: Tensor, batch: Batch) -> Tensor:
    """The teacher's logits, with its labels revised where that is asked for."""
    if not config.label_revision:
        return teacher
    return revise_labels(teacher, batch.labels, config.temperature, config.label_revision)


def _mutual(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return lambda b: len(b.own_logits) * logits.mutual(b.own_logits, config.objectives.mutual.temperature)


def _transfer(config: DistillConfig, widths: Sequence[int]) -> Compute:
    if config.objectives.transfer.joint:
        return lambda b: activations.joint_activation_transfer(b.student_maps, b.teacher_maps)
    return _on_parts(activations.activation_transfer)


def _on_parts(objective: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    """An objective on one part's maps, summed over devices."""

    def compute(batch: Batch) -> Tensor:
        pairs = zip(batch.student_maps, batch.teacher_maps, strict=True)
        return _sum([objective(s, t) for s, t in pairs])

    return compute


def _srrl(config: DistillConfig, widths: Sequence[int]) -> Compute:
    weight = config.objectives.srrl.feature_weight

    def compute(batch: Batch) -> Tensor:
        parts = zip(batch.student_maps, batch.teacher_maps, batch.classifier, strict=True)
        return _sum([activations.srrl(s, t, w, weight) for s, t, w in parts])

    return compute


def _rkd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.rkd
    return _on_parts(lambda s, t: relations.rkd(s, t, c.distance_weight, c.angle_weight))


def _layers(batch: Batch) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Layers that student and teacher both have, from input to the part's filters, for every device."""
    teacher = batch.teacher_taps or {}
    result = []
    for taps, last, target in zip(batch.student_taps, batch.student_maps, batch.teacher_maps, strict=True):
        names = [name for name in taps if name in teacher]
        result.append(([*(taps[n] for n in names), last], [*(teacher[n] for n in names), target]))
    return result


def _fsp(config: DistillConfig, widths: Sequence[int]) -> Compute:
    def compute(batch: Batch) -> Tensor:
        return _sum([flow.fsp((s[0], s[-1]), (t[0], t[-1])) for s, t in _layers(batch)])

    return compute


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


def _vid(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return PerDevice([learned.Vid(width, config.objectives.vid.variance) for width in widths])


def _crd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.crd
    return PerDevice([learned.Crd(width, c.dim, c.temperature) for width in widths])


def _srm(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.srm
    atoms = [max(2, math.ceil(width * c.atoms)) for width in widths]
    return PerDevice([learned.Srm(w, a, max(1, round(a * c.sparsity))) for w, a in zip(widths, atoms, strict=True)])


def _simreg(config: DistillConfig, widths: Sequence[int]) -> Compute:
    hidden = config.objectives.simreg.hidden
    return PerDevice([learned.Simreg(width, math.ceil(width * hidden)) for width in widths])


_ON = {"own": ("own_logits",), "both": ("own_logits",), "partial": ("classifier",)}
_TAPS = ("student_taps", "teacher_taps")
_BUILDERS: dict[str, tuple[Builder, tuple[str, ...]]] = {
    "ce": (_ce, ()),
    "kd": (_kd, ()),
    "dkd": (_dkd, ()),
    "mutual": (_mutual, ("own_logits",)),
    "transfer": (_transfer, ()),
    "hint": (lambda config, widths: _on_parts(activations.hint), ()),
    "at": (lambda config, widths: _on_parts(activations.at), ()),
    "srrl": (_srrl, ("classifier",)),
    "sp": (lambda config, widths: _on_parts(relations.sp), ()),
    "rkd": (_rkd, ()),
    "pkt": (lambda config, widths: _on_parts(relations.pkt), ()),
    "fsp": (_fsp, _TAPS),
    "lckd": (_lckd, _TAPS),
    "vid": (_vid, ()),
    "crd": (_crd, ()),
    "srm": (_srm, ()),
    "simreg": (_simreg, ()),
}
