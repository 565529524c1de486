"""Small real things for tests of objectives: feature maps and logits, a teacher, students with its parts, few terms."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonn.bundle.views import WHOLE, View, view_shape
from nonn.config import DistillConfig, TeacherConfig
from nonn.config.objectives import ObjectivesConfig
from nonn.distill import FusionLayer, Students
from nonn.students import Student
from nonn.teacher import Normalise, Teacher, build_teacher
from tests.toys import toy_data

PARTS = [list(range(j * 16, (j + 1) * 16)) for j in range(4)]
SAMPLE = torch.from_numpy(toy_data(32, seed=5)[0])
NAMES = [f.name for f in dataclasses.fields(ObjectivesConfig) if f.name != "others"]
ON_ANSWERS = {
    "ce",
    "kd",
    "dkd",
    "bkd",
    "dkpp",
    "cwtm",
    "dtd",
    "mutual",
    "pcl",
    "sokd",
    "vrkd",
    "gcl",
}  # these train the fusion, too
COUNTS = (500, 200, 100, 50, 20, 10, 5, 2, 1, 0)  # training samples of each of 10 classes

Array = NDArray[np.float64]

# Of a student and its teacher: maps of their last layer [B, C, H, W] and of one before it, and logits [B, K].
B, C, K = 6, 5, 7
RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(B, C, 3, 2)), RNG.normal(size=(B, C, 3, 2))
S1, T1 = RNG.normal(size=(B, 4, 6, 4)), RNG.normal(size=(B, 4, 6, 4))
ZS, ZT = RNG.normal(size=(B, K)) * 2, RNG.normal(size=(B, K)) * 2
W = RNG.normal(size=(K, C))
Y = np.array([4, 0, 2, 4, 0, 2])  # both halves of a batch have the same labels
LABELS = torch.from_numpy(Y)


def tensor(x: Array) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def weighted(**weights: float | dict[str, Any]) -> ObjectivesConfig:
    """Objectives of which only the named ones have a weight; a table also sets options and weighs 1 unless it says."""
    objectives = ObjectivesConfig()
    changed = {}
    for name in NAMES:
        value = weights.get(name, 0.0)
        options = {"weight": 1.0} | value if isinstance(value, dict) else {"weight": value}
        changed[name] = dataclasses.replace(getattr(objectives, name), **options)
    return ObjectivesConfig(**changed)


def distill(failout: Literal["none", "independent", "stratified", "groups"] = "none", **weights: Any) -> DistillConfig:
    """A configuration of the named objectives only; students train apart, so that each can be looked at."""
    return DistillConfig(objectives=weighted(**weights), failout=failout, grouped=False)


def normalise() -> Normalise:
    return Normalise([127.0], [70.0], 2)


def make_teacher() -> Teacher:
    torch.manual_seed(0)
    return build_teacher(TeacherConfig(model="wrn-10-1"), (1, 8, 8), 10, normalise())


def make_students(kind: str = "zero-fill", parts: tuple[int, ...] = (0, 1, 2, 3), view: View = WHOLE) -> Students:
    torch.manual_seed(1)
    students = [Student("wrn-10-1", view_shape((1, 8, 8), view), 16, normalise(), view=view) for _ in parts]
    return Students(students, FusionLayer(kind, [16] * len(parts), parts, 10))


def raw(n: int = 12) -> torch.Tensor:
    return torch.from_numpy(toy_data(n, seed=1)[0])


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()
