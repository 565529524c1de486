"""Schedules: teacher assistants and born-again generations, with real networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from nonn.config import DistillConfig, TeacherConfig
from nonn.distill import DistillTask
from nonn.distill.schedule import AssistantTask, Step, plan
from nonn.errors import ConfigError
from nonn.teacher import Teacher, build_teacher
from nonn.trainer import fit
from tests.objectives import PARTS, distill, make_students, make_teacher, normalise, raw, total
from tests.toys import toy_data
from tests.training import Unchanged, losses_of

LABELS = torch.arange(12) % 10


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_without_a_schedule_students_learn_from_the_teacher() -> None:
    assert plan(DistillConfig()) == (Step("students", "teacher"),)


def test_assistants_teach_one_another_and_generations_pass_on_their_answers() -> None:
    assert plan(DistillConfig(assistants=("wrn-28-2", "wrn-16-2"), generations=3)) == (
        Step("assistant-1", "teacher", "wrn-28-2"),
        Step("assistant-2", "assistant-1", "wrn-16-2"),
        Step("students-1", "assistant-2"),
        Step("students-2", "assistant-2", previous="students-1"),
        Step("students", "assistant-2", previous="students-2"),
    )


def test_every_step_learns_from_one_before_it() -> None:
    done = {"teacher", ""}
    for step in plan(DistillConfig(assistants=("a", "b"), generations=4)):
        assert {step.teacher, step.previous} <= done
        assert step.name not in done
        done.add(step.name)


def test_a_born_again_generation_learns_the_intact_answer_of_the_one_before_and_the_teachers_filters() -> None:
    teacher, previous, students = make_teacher(), make_students(), make_students()
    with torch.no_grad():
        for parameter in previous.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = distill("stratified", kd=1.0, transfer=1.0)
    plain = losses_of(DistillTask(teacher, students, PARTS, config), raw(), LABELS, generator())
    task = DistillTask(teacher, make_students(), PARTS, config, previous=previous)
    again = losses_of(task, raw(), LABELS, generator())
    assert again["transfer"].item() == plain["transfer"].item()
    assert again["kd"].item() != pytest.approx(plain["kd"].item(), rel=1e-3)
    total(again).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in previous.parameters())
    assert not any(previous is m for m in task.module.modules())

    same = make_students().eval()
    config = distill(kd=1.0)
    task = DistillTask(teacher, same, PARTS, config, previous=make_students())
    assert losses_of(task, raw(), LABELS, generator())["kd"].item() == pytest.approx(0, abs=1e-6)


def test_a_generation_trains_through_the_trainer_and_leaves_the_one_before_alone(tmp_path: Path) -> None:
    previous = make_students()
    before = {name: t.clone() for name, t in previous.state_dict().items()}
    config = dataclasses.replace(distill("stratified", kd=1.0, srrl=0.01), epochs=6, batch=50, lr=0.05)
    task = DistillTask(make_teacher(), make_students(), PARTS, config, previous=previous)
    history = fit(task, *toy_data(200, seed=1), config, tmp_path, seed=0, augment=Unchanged())
    assert history[-1]["kd"] < history[0]["kd"]
    assert all(torch.equal(t, before[name]) for name, t in previous.state_dict().items())


def assistant() -> Teacher:
    torch.manual_seed(2)
    return build_teacher(TeacherConfig(model="wrn-10-1"), (1, 8, 8), 10, normalise())


def test_an_assistant_learns_the_teachers_answers_by_the_objectives_on_whole_answers(tmp_path: Path) -> None:
    config = dataclasses.replace(distill(ce=0.1, kd=0.9, transfer=1.0, vid=1.0), epochs=6, batch=50, lr=0.01)
    teacher, made = make_teacher(), assistant()
    task = AssistantTask(teacher, made, config)
    assert set(task.terms) == {"ce", "kd"}
    assert task.module is made
    history = fit(task, *toy_data(200, seed=1), config, tmp_path, seed=0, augment=Unchanged())
    assert history[-1]["kd"] < 0.7 * history[0]["kd"]
    assert all(p.grad is None for p in teacher.parameters())


def test_an_assistant_teaches_students_like_any_teacher() -> None:
    task = DistillTask(assistant(), make_students(), PARTS, distill(kd=1.0, srrl=1.0, lckd=1.0))
    losses = losses_of(task, raw(), LABELS, generator())
    assert all(torch.isfinite(v) for v in losses.values())


def test_an_assistant_needs_an_objective_on_whole_answers() -> None:
    with pytest.raises(ConfigError, match="give ce, kd or dkd a weight"):
        AssistantTask(make_teacher(), assistant(), distill(transfer=1.0, kd={"on": "device"}))
