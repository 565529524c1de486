"""Objectives between networks that learn at the same time: peers, mean teachers, a teacher's block, adversaries."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nonn.config import load_experiment
from nonn.distill import DistillTask
from nonn.distill.objectives import Batch
from nonn.distill.objectives.adversarial import Discriminator, afd, attention
from nonn.distill.objectives.online import ie_kd, pcl
from nonn.errors import ConfigError, ShapeError
from nonn.teacher import Teacher
from tests.objectives import (
    PARTS,
    RNG,
    ZT,
    Array,
    B,
    C,
    K,
    S,
    T,
    distill,
    make_students,
    make_teacher,
    normalise,
    raw,
    tensor,
    total,
)
from tests.training import losses_of

CLASSES = torch.arange(12) % 10


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def kl(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum(axis=-1).mean())


# ---- peers and their moving averages ---------------------------------------------------------------------------


def test_peers_learn_from_the_ensemble_and_from_the_averages_of_the_others() -> None:
    own, means, tau = RNG.normal(size=(3, B, K)), RNG.normal(size=(3, B, K)), 3.0
    p, q, fused = softmax(own / tau), softmax(means / tau), softmax(ZT / tau)
    expected = sum(kl(fused, p[i]) for i in range(3))
    expected += sum(kl(q[j], p[i]) / 2 for i, j in itertools.permutations(range(3), 2))
    loss = pcl([tensor(z) for z in own], tensor(ZT), [tensor(z) for z in means], tau)
    assert float(loss) == pytest.approx(tau**2 * expected, rel=1e-4)
    with pytest.raises(ShapeError, match="at least two devices"):
        pcl([tensor(ZT)], tensor(ZT), [tensor(ZT)], tau)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_moving_average_follows_the_students_and_is_deployed(grouped: bool) -> None:
    config = dataclasses.replace(distill(pcl=1.0), grouped=grouped)
    students = make_students()
    task = DistillTask(make_teacher(), students, PARTS, config)
    assert task._means is not None
    learned = [p.detach() for p in task._learners.parameters()]
    expected = [p.clone() for p in learned]
    for step in range(4):
        with torch.no_grad():
            for value in learned:
                value.add_(0.1 * (step + 1))
            losses_of(task, raw(), CLASSES, generator())
        rate = max(1 / (step + 1), 0.001)
        expected = [e + rate * (v - e) for e, v in zip(expected, learned, strict=True)]
        for average, value in zip(task._means.students.parameters(), expected, strict=True):
            torch.testing.assert_close(average, value)
    assert not torch.equal(next(task._means.parameters()), learned[0])
    task.finish()
    with torch.no_grad():
        students.eval()
        averaged, features = task._means.students.eval().features(raw()), students.features(raw())
        for one, other in zip(averaged, features, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(students.fusion.linear.weight, task._means.students.fusion.linear.weight)
    assert not any(p.requires_grad for p in task._means.parameters())


def test_a_mean_teacher_gets_no_gradient_and_peers_ramp_up() -> None:
    task = DistillTask(make_teacher(), make_students(), PARTS, distill(pcl=1.0))
    task.progress = 0.135  # half of the ramp
    half = losses_of(task, raw(), CLASSES, generator())["pcl"]
    task.progress = 1.0
    whole = losses_of(task, raw(), CLASSES, generator())["pcl"]
    assert half.item() == pytest.approx(np.exp(-5 * 0.25) * whole.item(), rel=1e-3)
    whole.backward()  # type: ignore[no-untyped-call]
    assert task._means is not None
    assert all(p.grad is None for p in task._means.parameters())
    assert all(p.grad is not None for p in task.students.students.parameters())


# ---- a trainable block of the teacher --------------------------------------------------------------------------


def test_the_teachers_block_starts_as_the_teacher_and_learns_with_the_students() -> None:
    teacher = make_teacher()
    task = DistillTask(teacher, make_students(), PARTS, distill(sokd=1.0))
    with torch.no_grad():
        _, logits, taps = task._teach(raw())
    block = task.terms["sokd"].compute
    assert isinstance(block, nn.Module)
    assert taps is not None
    torch.testing.assert_close(block.eval().block(taps["stage-2"]), logits)  # type: ignore[operator]
    z, zs, y = logits.numpy().astype(float), RNG.normal(size=(24, 10)), CLASSES.numpy()
    batch = Batch(CLASSES, tensor(zs), logits, [], [], teacher_taps=taps)
    p, q, twice = softmax(z / 4), softmax(zs / 4), np.tile(softmax(z / 4), (2, 1))
    ce = -np.log(softmax(z)[np.arange(12), y]).mean()
    expected = 16 * (kl(twice, q) + kl(p, p) + kl(q, twice)) + ce
    assert block(batch).item() == pytest.approx(expected, rel=1e-3)
    block.train()
    total(losses_of(task, raw(), CLASSES, generator())).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in block.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not {p.data_ptr() for p in block.parameters()} & {p.data_ptr() for p in teacher.parameters()}


def test_a_teacher_without_a_known_last_block_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ConfigError, match=r"sokd: needs a teacher whose last block is known.*wrn"):
        DistillTask(Teacher(network, "1", normalise()), make_students(), PARTS, distill(sokd=1.0))


# ---- inheritance and exploration -------------------------------------------------------------------------------


def test_half_of_the_filters_inherits_and_the_other_explores() -> None:
    def distance(x: Array, y: Array) -> float:
        a, b = (v.reshape(B, -1) / np.linalg.norm(v.reshape(B, -1), axis=1, keepdims=True) for v in (x, y))
        return float(np.abs(a - b).sum(1).mean())

    h, other = C // 2, RNG.normal(size=S.shape)
    inherited = distance(S[:, :h], T[:, :h])
    expected = inherited - distance(S[:, h:], T[:, h:])
    assert float(ie_kd(tensor(S), tensor(T))) == pytest.approx(expected, rel=1e-3)
    expected = inherited - (distance(S[:, h:], other[:, h:]) + distance(S[:, h:], T[:, h:])) / 2
    assert float(ie_kd(tensor(S), tensor(T), [tensor(other), tensor(T)])) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ShapeError, match="two filters"):
        ie_kd(torch.rand(2, 1), torch.rand(2, 1))


REPLICATED = [PARTS[0], PARTS[1], PARTS[0], PARTS[1]]


@pytest.mark.parametrize("weights", [{"ie_kd": {"explore": "replicas"}}, {"afd": {"against": "replicas"}}])
def test_replicas_are_the_devices_of_the_same_filters(weights: dict[str, Any]) -> None:
    task = DistillTask(make_teacher(), make_students(), REPLICATED, distill(**weights))
    assert task._replicas == [[2], [3], [0], [1]]
    total(losses_of(task, raw(), CLASSES, generator())).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in task.students.students.parameters())
    alone = DistillTask(make_teacher(), make_students(), PARTS, distill(**weights))
    with pytest.raises(ConfigError, match="every part has two devices"):
        losses_of(alone, raw(), CLASSES, generator())
    name, options = next(iter(weights.items()))
    key, value = next(iter(options.items()))
    changes = [f"distill.objectives.{name}={{weight=1, {key}='{value}'}}"]
    with pytest.raises(ConfigError, match=r"set partition\.parts to 4 or fewer"):
        load_experiment(None, changes)
    load_experiment(None, [*changes, "partition.parts=4"])


# ---- adversaries -----------------------------------------------------------------------------------------------


def test_the_discriminator_and_the_student_have_opposite_aims() -> None:
    torch.manual_seed(0)
    judge = Discriminator(2, C)
    own, other = tensor(S).requires_grad_(), tensor(T).requires_grad_()
    with torch.no_grad():
        d, e = judge(own).double().numpy(), judge(other).double().numpy()
    loss = afd(judge, own, other)
    assert loss.item() == pytest.approx(float(((1 - e) ** 2 + d**2 + (1 - d) ** 2).mean()), rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert other.grad is None
    assert own.grad is not None
    (expected,) = torch.autograd.grad((1 - judge(tensor(S).requires_grad_(False))).square().mean(), judge.last.weight)
    trained = ((1 - judge(tensor(T))).square() + judge(tensor(S)).square()).mean()
    for parameter, gradient in zip(
        judge.parameters(), torch.autograd.grad(trained, list(judge.parameters())), strict=True
    ):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)  # L_D alone: nothing of the student's aim
    assert not torch.allclose(expected, judge.last.weight.grad)  # type: ignore[arg-type]
    fresh = tensor(S).requires_grad_()
    (1 - judge(fresh)).square().mean().backward()
    torch.testing.assert_close(own.grad, fresh.grad)


def test_a_discriminator_learns_to_tell_apart_and_a_student_to_deceive() -> None:
    torch.manual_seed(0)
    judge, own = Discriminator(2, C), nn.Parameter(tensor(S) - 1)
    optimizer = torch.optim.SGD(judge.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        afd(judge, own.detach(), tensor(T) + 1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert float(judge(tensor(T) + 1).mean()) > float(judge(own).mean()) + 0.2
        before = float(judge(own).mean())
    optimizer = torch.optim.SGD([own], lr=5.0)
    for _ in range(20):
        optimizer.zero_grad()
        afd(judge, own, tensor(T) + 1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert float(judge(own).mean()) > 3 * before


def test_attention_maps_have_one_channel_and_no_scale() -> None:
    energy = (S**2).sum(1)
    flat = energy.reshape(B, -1)
    expected = flat / np.linalg.norm(flat, axis=1, keepdims=True) * np.sqrt(flat.shape[1])
    np.testing.assert_allclose(attention(tensor(S)).reshape(B, -1).numpy(), expected, rtol=1e-4)
    task = DistillTask(make_teacher(), make_students(), PARTS, distill(afd={"maps": "attention"}))
    assert torch.isfinite(losses_of(task, raw(), CLASSES, generator())["afd"])
    with pytest.raises(ShapeError, match=r"afd\.maps = 'features'"):
        attention(torch.rand(3, C, 1, 1))
