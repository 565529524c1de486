"""Hint points: which layers of the teacher they are, and what students learn there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nonn.config import TeacherConfig
from nonn.distill import DistillTask, FusionLayer, Students
from nonn.distill.objectives import Batch
from nonn.distill.objectives.points import HintPoints, cka, medoids
from nonn.errors import ConfigError
from nonn.students import Student
from nonn.teacher import Teacher, build_teacher
from tests.objectives import LABELS, PARTS, RNG, SAMPLE, B, distill, make_students, make_teacher, normalise, tensor


def test_cka_forgets_rotations_and_scales_and_sees_independence() -> None:
    x = RNG.normal(size=(40, 6))
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    assert cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    y = RNG.normal(size=(40, 5))
    k, m = x @ x.T, y @ y.T
    h = np.eye(40) - 1 / 40
    expected = np.trace(k @ h @ m @ h) / np.sqrt(np.trace(k @ h @ k @ h) * np.trace(m @ h @ m @ h))
    assert cka(x, y) == pytest.approx(expected)
    assert cka(x, np.ones((40, 2))) == 0


def test_hint_points_are_one_layer_of_each_group_of_similar_ones() -> None:
    groups = [0, 0, 0, 1, 1, 2, 2, 2, 2]
    similarity = np.array([[1.0 if a == b else 0.1 for b in groups] for a in groups])
    similarity += 0.01 * np.eye(len(groups))
    assert [groups[i] for i in medoids(similarity, 3)] == [0, 1, 2]
    assert medoids(similarity, len(groups)) == list(range(len(groups)))


def test_a_hint_is_the_squared_distance_through_a_regressor() -> None:
    torch.manual_seed(0)
    module = HintPoints(1)
    module.layers = ["block-1-1", "block-3-1"]
    regressors = [nn.Conv2d(4, 6, 1), nn.Conv2d(5, 3, 1)]
    module.devices.append(nn.ModuleList(regressors))
    own, end = RNG.normal(size=(B, 4, 4, 4)), RNG.normal(size=(B, 5, 2, 2))
    early, late = RNG.normal(size=(B, 6, 8, 8)), RNG.normal(size=(B, 3, 2, 2))
    taps = {"block-1-1": tensor(early), "block-3-1": tensor(late)}
    student = {"stage-1": tensor(own)}
    loss = module(Batch(LABELS, tensor(end), tensor(end), [tensor(end)], [], student_taps=[student], teacher_taps=taps))
    expected = 0.0
    pairs = [(own, early.reshape(B, 6, 4, 2, 4, 2).mean(axis=(3, 5))), (end, late)]
    for regressor, (s, t) in zip(regressors, pairs, strict=True):
        w, b = regressor.weight.detach().numpy()[:, :, 0, 0], regressor.bias.detach().numpy()  # type: ignore[union-attr]
        gap = np.einsum("oc,bcxy->boxy", w, s) + b[:, None, None] - t
        expected += 0.5 * (gap**2).sum() / B
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_points_of_a_deep_teacher_are_spread_and_do_not_depend_on_the_seed() -> None:
    torch.manual_seed(0)
    teacher = build_teacher(TeacherConfig(model="wrn-22-1"), (1, 8, 8), 10, normalise())
    found = []
    for seed in (0, 1):
        config = distill(hint_points={"points": 3})
        task = DistillTask(teacher, make_students(), PARTS, config, sample=SAMPLE, seed=seed)
        points = task.terms["hint_points"].compute
        assert isinstance(points, HintPoints)
        found.append(points.layers)
    assert found[0] == found[1]
    assert 1 < len(found[0]) <= 3
    assert found[0] == sorted(found[0])


def test_networks_without_known_stages_and_a_lack_of_inputs_are_refused() -> None:
    config = distill(hint_points=1.0)
    with pytest.raises(ConfigError, match="hint_points: give the task a sample"):
        DistillTask(make_teacher(), make_students(), PARTS, config)
    with pytest.raises(ConfigError, match=r"points = 4: the teacher has 3 known blocks"):
        DistillTask(make_teacher(), make_students(), PARTS, distill(hint_points={"points": 4}), sample=SAMPLE)
    network = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ConfigError, match="the teacher has 0 known blocks"):
        DistillTask(Teacher(network, "1", normalise()), make_students(), PARTS, config, sample=SAMPLE)
    strided = Students([Student("strided-3-1", (1, 8, 8), 16, normalise())], FusionLayer("zero-fill", [16], (0,), 10))
    with pytest.raises(ConfigError, match="needs students whose stages are known"):
        DistillTask(make_teacher(), strided, PARTS[:1], distill(hint_points={"points": 3}), sample=SAMPLE)
