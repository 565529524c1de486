"""Training task of the students: the losses of all students and their fusion, minimised jointly.

The teacher runs once per batch, or not at all if its answers are stored, and is not part of the trained module.
Students are separate networks, built one by one: a test excludes an accidentally shared trunk (one deep copy outside of
the loop), which occurs in public code.
Parameters of objectives are trained next to the students, never inside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn.config import DistillConfig
from nonn.distill.ema import MeanTeachers
from nonn.distill.failout import sample_answering
from nonn.distill.objectives import Batch, auxiliaries, build_terms, pool_to
from nonn.distill.objectives.building import Prepared
from nonn.distill.objectives.terms import class_counts_for, draw_noise
from nonn.distill.probes import blocks, classifier_weight, tapped
from nonn.distill.students import JointStudents, Students
from nonn.errors import ConfigError
from nonn.teacher import Branches, Teacher, pool
from nonn.trainer import Target
from nonn.trainer.curriculum import Curriculum

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
        class_counts: number of training samples of each class [K], for objectives and a curriculum.
        sample: some raw training inputs [n, C, …], for objectives that look at the teacher before the training.
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
        class_counts: Sequence[int] = (),
        sample: Tensor | None = None,
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
            for term in self.terms.values():
                if isinstance(term.compute, Prepared):
                    term.compute.prepare(self.teacher, students, sample)
        self._needs: frozenset[str] = frozenset().union(*(term.needs for term in self.terms.values()))
        self._counts = class_counts_for(self.terms, class_counts)
        lists = [tuple(map(int, f)) for f in filters]
        self._replicas = [[j for j, other in enumerate(lists) if j != i and other == f] for i, f in enumerate(lists)]
        # Objectives that look into a student need it as an individual network.
        joint = config.grouped and "student_taps" not in self._needs
        self._learners: Students | JointStudents = JointStudents(students) if joint else students
        self.module = nn.ModuleDict({"students": self._learners, "auxiliaries": auxiliaries(self.terms)})
        self.curriculum = Curriculum(sum(class_counts), config.curriculum) if config.curriculum else None
        if self.curriculum is not None:
            if not class_counts:
                raise ConfigError("distill.curriculum: give the task class_counts, the samples of each class")
            self.module["curriculum"] = self.curriculum
        self._means = MeanTeachers(self._learners) if "mean_teacher_logits" in self._needs else None
        if self._means is not None:
            self.module["mean_teachers"] = self._means
        self.progress = 1.0
        self._classifier: list[Tensor] = []

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The devices that answer each sample, ``answered`` [R, B, N] for R subsets of each, on the CPU."""
        c, devices = self.config, len(self.filters)
        rows = sample_answering(
            c.failout,
            c.failout_draws * batch,
            devices,
            c.p_failout,
            generator,
            groups=c.failout_groups,
            p_group=c.p_group,
        )
        noise = draw_noise(self.terms, batch, len(self._counts), generator)
        return {"answered": rows.view(c.failout_draws, batch, devices)} | noise

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        """Named, weighted losses of a batch; their sum is minimised.

        Args:
            inputs: raw values [B, C, …].
            labels: [B].
            draws: result of ``draw``.
            target: stored answers of the teacher; objectives then compare mean activations, not maps.

        Raises:
            ConfigError: an objective needs more of the teacher than its stored answers.
        """
        if target is None:
            teacher_maps, teacher_logits, teacher_taps = self._teach(inputs)
        else:
            teacher_maps, teacher_logits, teacher_taps = self._recall(inputs, target)
        maps, features, taps = self._study(inputs)
        if target is not None:
            maps = [pool(m)[(..., *[None] * (m.ndim - 2))] for m in maps]
        fused = [self._learners.fusion(features, answered) for answered in draws["answered"]]
        parts = [teacher_maps.index_select(1, f) for f in self._filters_on(inputs.device)]
        self._counts = self._counts.to(inputs.device)
        batch = Batch(
            labels,
            torch.cat(fused).float(),
            teacher_logits,
            maps,
            [pool_to(t, m.shape[2:]) for t, m in zip(parts, maps, strict=True)],
            progress=self.progress,
            device_logits=_device_logits(self._learners, features) if "device_logits" in self._needs else (),
            branch_logits=self._branch_logits(teacher_maps, teacher_logits),
            classifier=self._classifier,
            student_taps=taps,
            teacher_taps=teacher_taps,
            ensemble_logits=_ensemble(self._learners, features) if "ensemble_logits" in self._needs else None,
            mean_teacher_logits=self._mean_teachers(inputs),
            replicas=self._replicas,
            class_counts=self._counts,
            noise=draws.get("noise"),
            inputs=inputs,
            **self._views(target),
        )
        return {name: term(batch) for name, term in self.terms.items()}

    def difficulty(self, inputs: Tensor, labels: Tensor, phase: int) -> Tensor:
        """Cross entropy of each sample [B]: of the students' answer, or of the teacher's before they have learned."""
        if phase:
            logits = _ensemble(self._learners, self._learners.features(inputs))
        else:
            _, logits = self.teacher.to(inputs.device)(inputs)
        return functional.cross_entropy(logits.float(), labels, reduction="none")

    def finish(self) -> None:
        """Writes the learned weights, or their moving average if an objective has one, into the students."""
        learned = self._learners
        if self._means is not None:
            self._means.update(learned)  # with the last step
            learned = self._means.students
        if isinstance(learned, JointStudents):
            learned.copy_back(self.students)
            self.students.fusion.load_state_dict(learned.fusion.state_dict())
        elif learned is not self.students:
            self.students.load_state_dict(learned.state_dict())

    @torch.no_grad()
    def _teach(self, inputs: Tensor) -> tuple[Tensor, Tensor, Mapping[str, Tensor] | None]:
        """The teacher's maps [B, C_T, …], the logits to learn from [B, K] and its earlier layers."""
        teacher = self.teacher.to(inputs.device)
        with tapped([teacher.network] if "teacher_taps" in self._needs else [], blocks) as taps:
            maps, logits = teacher(inputs)
        return maps, self._answers(inputs, maps, logits), taps[0] if taps else None

    @torch.no_grad()
    def _recall(self, inputs: Tensor, target: Target) -> tuple[Tensor, Tensor, None]:
        """The same from stored answers; the maps are mean activations, with spatial axes of length 1."""
        if "teacher_taps" in self._needs:
            users = " and ".join(name for name, term in self.terms.items() if "teacher_taps" in term.needs)
            raise ConfigError(
                f"distill.teacher_views: {users} need the teacher's earlier layers, which are not stored; "
                f"set teacher_views = 0, or the weights of {users} to 0"
            )
        maps = target.pooled[(..., *[None] * (inputs.ndim - 2))]
        return maps, self._answers(inputs, maps, target.logits), None

    def _views(self, target: Target | None) -> dict[str, Any]:
        """What the teacher says to all stored views of the samples, for the fields of ``Batch``."""
        if "views" not in self._needs or target is None or target.view_logits is None or target.view_pooled is None:
            return {}
        parts = [target.view_pooled.index_select(2, f) for f in self._filters_on(target.logits.device)]
        return {"view_logits": target.view_logits, "view_features": parts}

    def _answers(self, inputs: Tensor, maps: Tensor, logits: Tensor) -> Tensor:
        """The logits to learn from: the teacher's, or those of the previous generation."""
        if "classifier" in self._needs and not self._classifier:
            weight = classifier_weight(self.teacher, maps, logits)
            self._classifier = [weight.index_select(1, f.to(weight.device)).to(inputs.device) for f in self.filters]
        if self.previous is not None:
            logits = _ensemble(self.previous, self.previous.to(inputs.device).features(inputs))
        return logits

    @torch.no_grad()
    def _branch_logits(self, maps: Tensor, logits: Tensor) -> Sequence[Tensor]:
        """The logits that each device alone learns from, N tensors [B, K]; empty if branches have no share in them."""
        share, network = self.config.branch_share, self.teacher.network
        if not share:
            return ()
        if not isinstance(network, Branches):
            raise ConfigError("distill.branch_share: needs a teacher with branches; set teacher.branches")
        views = network.view_logits(maps)  # [B, U, K]
        return [
            (1 - share) * logits + share * views[:, network.views.index(s.view)] for s in self.students.individual()
        ]

    def _filters_on(self, device: torch.device) -> list[Tensor]:
        """The filters of each device, copied to the device of the batch once."""
        self.filters = [f.to(device) for f in self.filters]
        return self.filters

    def _study(self, inputs: Tensor) -> tuple[list[Tensor], list[Tensor], Sequence[Mapping[str, Tensor]]]:
        """The students' maps [B, C_j, …], sent features [B, d_i] and earlier layers, N of each."""
        looked_into = self.students.individual() if "student_taps" in self._needs else []
        with tapped([student.backbone for student in looked_into]) as taps:
            return *self._learners.maps_and_features(inputs), taps

    @torch.no_grad()
    def _mean_teachers(self, inputs: Tensor) -> Sequence[Tensor]:
        """The answer of each device's moving average alone, after its update with the last step, N tensors [B, K]."""
        if self._means is None:
            return ()
        self._means.update(self._learners)
        return _device_logits(self._means.students, self._means.students.features(inputs))


def _device_logits(students: Students | JointStudents, features: Sequence[Tensor]) -> list[Tensor]:
    """The answer of each device alone, N tensors [B, K]."""
    alone = torch.eye(len(features), dtype=torch.bool, device=features[0].device)
    batch = len(features[0])
    return [students.fusion(features, row.expand(batch, -1)).float() for row in alone]


def _ensemble(students: Students | JointStudents, features: Sequence[Tensor]) -> Tensor:
    """The fused answer of all devices [B, K]."""
    everyone = torch.ones(len(features[0]), len(features), dtype=torch.bool, device=features[0].device)
    logits: Tensor = students.fusion(features, everyone)
    return logits.float()
