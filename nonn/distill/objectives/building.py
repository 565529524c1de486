"""How objectives are built: the registry's entry, and what builders share.

A module of an objective registers its builder with ``@objective(name, …)``; ``nonn.distill.objectives.registry``
imports all of them. Losses of single devices are summed over devices: a student then learns as fast as it would alone,
for any number of devices. A mean would divide its learning rate by N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.config.objectives import LogitConfig, SoftTargetConfig
from nonn.distill.objectives import activations, logits
from nonn.distill.objectives.batch import Batch
from nonn.distill.targets import keep_top, leave_out, revise_labels
from nonn.teacher import Teacher
from nonn.toml import Registry

__all__ = [
    "OBJECTIVES",
    "Build",
    "Compute",
    "Objective",
    "PerDevice",
    "Prepared",
    "objective",
    "on_logits",
    "on_parts",
    "summed",
    "target",
]

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


def objective(name: str, *needs: str) -> Callable[[Build], Build]:
    """Registers a builder."""

    def register(build: Build) -> Build:
        OBJECTIVES[name] = Objective(build, needs)
        return build

    return register


@runtime_checkable
class Prepared(Protocol):
    """An objective whose parameters depend on the teacher."""

    def prepare(self, teacher: Teacher, students: nn.Module, sample: Tensor | None) -> None:
        """Called once, before the optimiser is created.

        Args:
            teacher: the teacher.
            students: ``nonn.distill.Students``.
            sample: some raw training inputs [n, C, …], if there are any.
        """
        ...


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
        return summed([device(s, t, batch.labels) for device, s, t in pairs])


def summed(losses: Sequence[Tensor]) -> Tensor:
    """The sum of scalars, such as one loss for each device."""
    return torch.stack(list(losses)).sum()


def on_parts(objective: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    """An objective on one part's maps, summed over devices."""
    return lambda b: summed([objective(s, t) for s, t in zip(b.student_maps, b.teacher_maps, strict=True)])


def on_logits(
    config: LogitConfig,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    teacher: Callable[[Batch], Tensor] | None = None,
) -> Compute:
    """A loss of student logits, teacher logits and labels, summed over the answers that ``on`` names.

    Args:
        config: the answers.
        loss: (student [B, K], teacher [B, K], labels [B]) → scalar.
        teacher: the teacher's logits [B, K] of a batch for every device; not used for ``partial``. None is
            ``teacher_logits``, and ``branch_logits`` for devices alone if there are any.
    """

    def compute(b: Batch) -> Tensor:
        if config.on == "partial":
            parts = zip(b.student_maps, b.teacher_maps, b.classifier, strict=True)
            pairs = [(activations.partial_logits(s, w), activations.partial_logits(t, w)) for s, t, w in parts]
            return summed([loss(s, t, b.labels) for s, t in pairs])
        losses, answer = [], b.teacher_logits if teacher is None else teacher(b)
        if config.on in ("fused", "both"):
            subsets = len(b.fused) // len(b.labels)
            losses.append(loss(b.fused, answer.repeat(subsets, 1), b.labels.repeat(subsets)))
        if config.on in ("device", "both"):
            answers = b.branch_logits if teacher is None and b.branch_logits else [answer] * len(b.device_logits)
            alone = zip(b.device_logits, answers, strict=True)
            losses += [config.device_weight * loss(s, t, b.labels) for s, t in alone]
        return summed(losses)

    return compute


def kd_from(config: SoftTargetConfig, teacher: Callable[[Batch], Tensor]) -> Compute:
    """KD from other logits than the teacher's own.

    Args:
        config: the answers, the temperature, and how the logits are changed.
        teacher: the logits [B, K] of a batch.
    """

    def loss(student: Tensor, answer: Tensor, labels: Tensor) -> Tensor:
        return logits.kd(student, target(config, student, answer, labels), config.temperature)

    return on_logits(config, loss, teacher)


def target(config: SoftTargetConfig, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The teacher's logits [B, K], changed as the options of a soft target say; see ``nonn.distill.targets``."""
    if config.top_k:
        teacher = keep_top(teacher, config.top_k, config.temperature)
    result = teacher
    if config.label_revision:
        eta, only_wrong = config.label_revision, config.only_wrong
        result = revise_labels(teacher, labels, config.temperature, eta, only_wrong=only_wrong)
    if config.selection:
        result = leave_out(result, student, teacher, labels, config.selection)
    return result
