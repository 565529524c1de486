"""Schedules around the objectives: sequences of distillations, each one learning from those before it.

- Teacher assistants (Mirzadeh et al. 2020, arXiv 1902.03393): networks of a size in between are distilled one from
  the other; the last one's filters are cut into parts and its answers are the students' target.
- Born-again networks (Furlanello et al. 2018, arXiv 1805.04770): students are trained anew, from the answers of the
  students before them.

Both go with any set of objectives. Mutual learning is no schedule but an objective, since its students learn at the
same time: ``distill.objectives.mutual``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nonn.config import DistillConfig
from nonn.distill.objectives import Batch, Term, build_terms
from nonn.errors import ConfigError
from nonn.teacher import Teacher

__all__ = ["AssistantTask", "Step", "plan"]

TEACHER = "teacher"
STUDENTS = "students"


@dataclass(frozen=True)
class Step:
    """One distillation.

    Attributes:
        name: of the step and of its folder.
        teacher: name of the step whose network teaches, ``teacher`` for the teacher itself.
        model: what an assistant is; empty where the students are trained.
        previous: name of the students whose answers replace the teacher's; empty where there are none.
    """

    name: str
    teacher: str
    model: str = ""
    previous: str = ""


def plan(config: DistillConfig) -> tuple[Step, ...]:
    """The steps that a configuration asks for, in order; the last one is always called ``students``.

    One assistant and two generations give ``assistant-1``, ``students-1``, ``students``.
    """
    steps, teacher = [], TEACHER
    for number, model in enumerate(config.assistants, start=1):
        steps.append(Step(f"assistant-{number}", teacher, model))
        teacher = steps[-1].name
    previous = ""
    for generation in range(1, config.generations + 1):
        name = STUDENTS if generation == config.generations else f"{STUDENTS}-{generation}"
        steps.append(Step(name, teacher, previous=previous))
        previous = name
    return tuple(steps)


class AssistantTask:
    """Distils a whole teacher into an assistant.

    Of the objectives that the students have, those on whole answers apply: an assistant has no parts.

    Args:
        teacher: frozen here.
        assistant: what is trained.
        config: objectives.

    Attributes:
        module: the assistant.
        progress: share of all steps that are done, in [0, 1].

    Raises:
        ConfigError: no objective is on whole answers.
    """

    def __init__(self, teacher: Teacher, assistant: Teacher, config: DistillConfig) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.module = assistant
        self.terms: dict[str, Term] = {name: term for name, term in build_terms(config).items() if term.whole}
        if not self.terms:
            raise ConfigError("distill.assistants: an assistant learns from answers; give ce, kd or dkd a weight")
        self.progress = 1.0

    def losses(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Named, weighted losses of a batch of raw inputs [B, C, …] and labels [B]; their sum is minimised."""
        with torch.no_grad():
            _, teacher_logits = self.teacher.to(inputs.device)(inputs)
        _, logits = self.module(inputs)
        nothing: Sequence[Tensor] = ()
        batch = Batch(labels, logits, teacher_logits, nothing, nothing, progress=self.progress)
        return {name: term(batch) for name, term in self.terms.items()}
