"""Schedules around the objectives: sequences of distillations, each of which learns from earlier ones.

- Teacher assistants (Mirzadeh et al. 2020, arXiv 1902.03393): networks of intermediate sizes are distilled one from
  the other; the filters of the last one are cut into parts, and its answers are the target of the students.
- Born-again networks (Furlanello et al. 2018, arXiv 1805.04770): students are trained again, from the answers of the
  students of the previous generation.

Both work with any objectives. Mutual learning is an objective and not a schedule, since its students learn at the same
time: ``distill.objectives.mutual``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nonn.config import DistillConfig
from nonn.distill.objectives import Batch, Term, build_terms
from nonn.distill.objectives.terms import class_counts_for, draw_noise
from nonn.errors import ConfigError
from nonn.teacher import Teacher
from nonn.trainer import Target

__all__ = ["AssistantTask", "DistillStep", "plan"]

TEACHER = "teacher"
STUDENTS = "students"


@dataclass(frozen=True)
class DistillStep:
    """One distillation.

    Attributes:
        name: name of the step and of its folder.
        teacher: name of the step whose network is the teacher; ``teacher`` for the original teacher.
        model: network of an assistant; empty if the step trains the students.
        previous: name of the students whose answers replace those of the teacher; empty if there are none.
    """

    name: str
    teacher: str
    model: str = ""
    previous: str = ""


def plan(config: DistillConfig) -> tuple[DistillStep, ...]:
    """The steps of a configuration, in order; the last one is always called ``students``.

    One assistant and two generations give ``assistant-1``, ``students-1``, ``students``.
    """
    steps, teacher = [], TEACHER
    for number, model in enumerate(config.assistants, start=1):
        steps.append(DistillStep(f"assistant-{number}", teacher, model))
        teacher = steps[-1].name
    previous = ""
    for generation in range(1, config.generations + 1):
        name = STUDENTS if generation == config.generations else f"{STUDENTS}-{generation}"
        steps.append(DistillStep(name, teacher, previous=previous))
        previous = name
    return tuple(steps)


class AssistantTask:
    """Distils a whole teacher into an assistant.

    Only objectives on complete answers apply, since an assistant has no parts.

    Args:
        teacher: frozen here.
        assistant: the network to train.
        config: the objectives.
        class_counts: number of training samples of each class [K], for objectives that need it.

    Attributes:
        module: the assistant.
        progress: share of finished steps, in [0, 1].

    Raises:
        ConfigError: no objective is on complete answers.
    """

    def __init__(
        self, teacher: Teacher, assistant: Teacher, config: DistillConfig, class_counts: Sequence[int] = ()
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.module = assistant
        self.terms: dict[str, Term] = {name: term for name, term in build_terms(config).items() if term.whole}
        if not self.terms:
            raise ConfigError("distill.assistants: an assistant learns from answers; give ce, kd or dkd a weight")
        self.progress = 1.0
        self._counts = class_counts_for(self.terms, class_counts)

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random numbers of the objectives, on the CPU."""
        return draw_noise(self.terms, batch, len(self._counts), generator)

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        """Named, weighted losses of a batch of raw inputs [B, C, …] and labels [B]; their sum is minimised.

        ``nonn.trainer.Task`` describes the arguments.
        """
        if target is None:
            with torch.no_grad():
                _, teacher_logits = self.teacher.to(inputs.device)(inputs)
        else:
            teacher_logits = target.logits
        _, logits = self.module(inputs)
        nothing: Sequence[Tensor] = ()
        self._counts = self._counts.to(inputs.device)
        batch = Batch(
            labels,
            logits,
            teacher_logits,
            nothing,
            nothing,
            progress=self.progress,
            class_counts=self._counts,
            noise=draws.get("noise"),
        )
        return {name: term(batch) for name, term in self.terms.items()}
