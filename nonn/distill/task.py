"""Training task of the students: the losses of all students and their fusion, minimised jointly.

The teacher runs once per batch and is not part of the trained module. Students are separate networks, built one by
one: a test excludes an accidentally shared trunk (one deep copy outside of the loop), which occurs in public code.
Parameters of objectives are trained next to the students, never inside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.distill.failout import sample_answering
from nonn.distill.objectives import Batch, auxiliaries, build_terms
from nonn.distill.objectives._common import pool_to
from nonn.distill.probes import classifier_weight, tapped
from nonn.distill.students import JointStudents, Students
from nonn.teacher import Teacher

__all__ = ["DistillTask"]


class DistillTask:
    """Distils parts of a teacher into students, under failout.

    Args:
        teacher: frozen here.
        students: the students to train.
        filters: the teacher's filters that each device learns, N lists.
        config: the objectives and failout.
        previous: students of the previous generation, frozen here; their fused answer with all devices
            replaces the teacher's logits (born-again networks); the filters stay those of the teacher.
        seed: seed of the initial parameters of objectives.

    Attributes:
        module: the students and the parameters of objectives.
        progress: share of finished steps, in [0, 1]; the trainer sets it before every step, for warm-ups.

    Raises:
        ConfigError: an objective is not possible with these students.
    """

    def __init__(
        self,
        teacher: Teacher,
        students: Students,
        filters: Sequence[Sequence[int]],
        config: DistillConfig,
        *,
        previous: Students | None = None,
        seed: int = 0,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.previous = None if previous is None else previous.eval().requires_grad_(False)
        self.students = students
        self.filters = [torch.as_tensor(np.asarray(f, dtype=np.int64)) for f in filters]
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.terms = build_terms(config, [len(f) for f in filters])
        self._needs: frozenset[str] = frozenset().union(*(term.needs for term in self.terms.values()))
        # Objectives that look into a student need it as an individual network.
        joint = config.grouped and "student_taps" not in self._needs
        self._learners: Students | JointStudents = JointStudents(students) if joint else students
        self.module = nn.ModuleDict({"students": self._learners, "auxiliaries": auxiliaries(self.terms)})
        self.progress = 1.0
        self._classifier: list[Tensor] = []

    def losses(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Named, weighted losses of a batch of raw inputs [B, C, …] and labels [B]; their sum is minimised."""
        teacher_maps, teacher_logits, teacher_taps = self._teach(inputs)
        maps, features, taps = self._study(inputs)
        c = self.config
        answered = sample_answering(
            c.failout, len(inputs), len(maps), c.p_failout, generator, groups=c.failout_groups, p_group=c.p_group
        )
        fused = self._learners.fusion(features, answered.to(inputs.device))
        parts = [teacher_maps.index_select(1, f.to(inputs.device)) for f in self.filters]
        batch = Batch(
            labels,
            fused.float(),
            teacher_logits,
            maps,
            [pool_to(t, m.shape[2:]) for t, m in zip(parts, maps, strict=True)],
            progress=self.progress,
            device_logits=self._device_logits(features) if "device_logits" in self._needs else (),
            classifier=self._classifier,
            student_taps=taps,
            teacher_taps=teacher_taps,
        )
        return {name: term(batch) for name, term in self.terms.items()}

    def finish(self) -> None:
        """Writes the learned weights into the students."""
        if isinstance(self._learners, JointStudents):
            self._learners.copy_back(self.students)

    @torch.no_grad()
    def _teach(self, inputs: Tensor) -> tuple[Tensor, Tensor, Mapping[str, Tensor] | None]:
        """The teacher's maps [B, C_T, …], the logits to learn from [B, K] and its earlier layers."""
        teacher = self.teacher.to(inputs.device)
        with self._tapping([teacher.network]) as taps:
            maps, logits = teacher(inputs)
        if "classifier" in self._needs and not self._classifier:
            weight = classifier_weight(teacher, maps, logits)
            self._classifier = [weight.index_select(1, f.to(weight.device)) for f in self.filters]
        if self.previous is not None:
            features = self.previous.to(inputs.device).features(inputs)
            everyone = torch.ones(len(inputs), len(features), dtype=torch.bool, device=inputs.device)
            logits = self.previous.fusion(features, everyone).float()
        return maps, logits, taps[0] if taps else None

    def _study(self, inputs: Tensor) -> tuple[list[Tensor], list[Tensor], Sequence[Mapping[str, Tensor]]]:
        """The students' maps [B, C_j, …], sent features [B, d_i] and earlier layers, N of each."""
        with self._tapping([student.backbone for student in self.students.individual()]) as taps:
            return *self._learners.maps_and_features(inputs), taps

    def _tapping(
        self, networks: Sequence[nn.Module]
    ) -> contextlib.AbstractContextManager[Sequence[Mapping[str, Tensor]]]:
        return tapped(networks) if "student_taps" in self._needs else contextlib.nullcontext(())

    def _device_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The answer of each device alone, N tensors [B, K]."""
        alone = torch.eye(len(features), dtype=torch.bool, device=features[0].device)
        batch = len(features[0])
        return [self._learners.fusion(features, row.expand(batch, -1)).float() for row in alone]
