"""Schedules: assistants, born-again generations, a curriculum, stages inside the teacher; with real networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from nonn.config import DistillConfig, TeacherConfig, load_experiment
from nonn.distill import DistillTask, FusionLayer, Students
from nonn.distill.blockwise import BlockTask
from nonn.distill.schedule import AssistantTask, DistillStep, plan
from nonn.errors import ConfigError
from nonn.students import Student
from nonn.teacher import Teacher, build_teacher
from nonn.trainer import fit
from nonn.trainer.curriculum import Curriculum
from tests.objectives import PARTS, distill, make_students, make_teacher, normalise, raw, total
from tests.toys import toy_data
from tests.training import Unchanged, losses_of

LABELS = torch.arange(12) % 10


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_without_a_schedule_students_learn_from_the_teacher() -> None:
    assert plan(DistillConfig()) == (DistillStep("students", "teacher"),)


def test_assistants_teach_one_another_and_generations_pass_on_their_answers() -> None:
    assert plan(DistillConfig(assistants=("wrn-28-2", "wrn-16-2"), generations=3)) == (
        DistillStep("assistant-1", "teacher", "wrn-28-2"),
        DistillStep("assistant-2", "assistant-1", "wrn-16-2"),
        DistillStep("students-1", "assistant-2"),
        DistillStep("students-2", "assistant-2", previous="students-1"),
        DistillStep("students", "assistant-2", previous="students-2"),
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


# ---- curriculum ------------------------------------------------------------------------------------------------


def curriculum(**changes: Any) -> DistillTask:
    config = dataclasses.replace(distill(ce=1.0), curriculum=3, **changes)
    return DistillTask(make_teacher(), make_students(), PARTS, config, class_counts=[6] * 8)


def test_a_phase_draws_from_the_easiest_samples_and_the_last_from_all() -> None:
    order = torch.randperm(48)
    easy = Curriculum(48, 3)
    easy.order.copy_(order)
    assert [easy.starts(e, 6) for e in range(6)] == [True, False, True, False, True, False]
    for epoch in range(6):
        drawn = easy.draw(epoch, 6, 40, generator())
        share = 16 * (epoch // 2 + 1)
        assert len(drawn) == 40
        assert set(drawn.tolist()) <= set(order[:share].tolist())
        counts = drawn.bincount(minlength=48)[order[:share]]
        assert counts.max() - counts.min() <= 1
    assert set(easy.draw(5, 6, 48, generator()).tolist()) == set(range(48))


def test_samples_are_ranked_by_the_teachers_loss_and_then_by_the_students(tmp_path: Path) -> None:
    inputs, labels = toy_data(48, seed=1)
    task = curriculum(epochs=3, batch=24, lr=0.01)
    ranked: list[torch.Tensor] = []

    def difficulty(x: torch.Tensor, y: torch.Tensor, phase: int) -> torch.Tensor:
        assert not task.module.training
        found = original(x, y, phase)
        with torch.no_grad():
            everyone = torch.ones(len(x), 4, dtype=torch.bool)
            own = task.students.fusion(task.students.features(x), everyone)
            logits = task.teacher(x)[1] if phase == 0 else own
        torch.testing.assert_close(found, functional.cross_entropy(logits, y, reduction="none"))
        ranked.append(found)
        return found

    original = task.difficulty
    task.difficulty = difficulty  # type: ignore[method-assign,assignment]
    fit(task, inputs, labels, task.config, tmp_path, seed=0, augment=Unchanged())
    assert len(ranked) == 3
    assert task.curriculum is not None
    assert torch.equal(task.curriculum.order, ranked[-1].argsort(stable=True))
    assert not torch.equal(ranked[1].argsort(), ranked[2].argsort())


def test_a_curriculum_that_was_interrupted_in_a_phase_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    changes = {"epochs": 6, "batch": 24, "lr": 0.01}

    def stop(epoch: int, *_: Any) -> None:
        if epoch == 3:  # the second phase has epochs 3 and 4
            raise KeyboardInterrupt

    whole, cut, resumed = (curriculum(**changes) for _ in range(3))
    data = toy_data(48, seed=1)
    fit(whole, *data, whole.config, tmp_path / "whole", seed=0, augment=Unchanged())
    with pytest.raises(KeyboardInterrupt):
        fit(cut, *data, cut.config, tmp_path / "cut", seed=0, augment=Unchanged(), progress=stop)
    fit(resumed, *data, resumed.config, tmp_path / "cut", seed=0, augment=Unchanged())
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
    with pytest.raises(ConfigError, match=r"distill\.curriculum.*more phases"):
        load_experiment(None, ["distill.curriculum=5", "distill.epochs=4"])


# ---- blockwise -------------------------------------------------------------------------------------------------


def test_a_stage_learns_inside_the_teacher_and_nothing_else_changes(tmp_path: Path) -> None:
    teacher, students = make_teacher(), make_students()
    frozen = {name: t.clone() for name, t in teacher.state_dict().items()}
    config = dataclasses.replace(distill(ce=1.0), epochs=3, batch=24, lr=0.005)
    for stage in (1, 2, 3):
        before = {name: t.clone() for name, t in students.state_dict().items()}
        task = BlockTask(teacher, students, stage)
        options = dataclasses.replace(config, bf16="on" if stage == 2 else "off")
        history = fit(task, *toy_data(48, seed=1), options, tmp_path / str(stage), seed=0, augment=Unchanged())
        assert history[-1]["local"] < history[0]["local"]
        changed = {name for name, t in students.state_dict().items() if not torch.equal(t, before[name])}
        own = {f"students.{i}.backbone.features.{n}." for i in range(4) for n in STAGES_OF_WRN_10[stage]}
        assert {name for name in changed if not any(name.startswith(prefix) for prefix in own)} == set()
        assert {prefix for prefix in own if any(name.startswith(prefix) for name in changed)} == own
    assert all(torch.equal(t, frozen[name]) for name, t in teacher.state_dict().items())


STAGES_OF_WRN_10 = {1: (0, 1), 2: (2,), 3: (3, 4)}  # first convolution and block; block; block and BN


def test_a_stage_is_compared_at_the_teachers_own_and_through_the_rest_of_it() -> None:
    teacher, students = make_teacher(), make_students()
    task = BlockTask(teacher, students, 3)
    same = task.teacher.network.features[3:]  # type: ignore[index]
    task._own[0] = same  # type: ignore[assignment]
    task._before[0] = torch.nn.Sequential(teacher.normalise, *teacher.network.features[:3])  # type: ignore[index]
    task._regressors[0] = torch.nn.Identity()
    for members in (task._own, task._regressors):
        del members[1:]
    del task._before[1:], students.students[1:]
    losses = task.losses(raw(), LABELS, {})
    assert losses["local"].item() == 0
    with torch.no_grad():
        expected = functional.cross_entropy(teacher(raw())[1], LABELS)
    assert losses["ce"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_networks_without_stages_are_refused() -> None:
    strided = Students([Student("strided-3-1", (1, 8, 8), 16, normalise())], FusionLayer("zero-fill", [16], (0,), 10))
    with pytest.raises(ConfigError, match=r"distill\.blockwise: student\.model has no known stages"):
        BlockTask(make_teacher(), strided, 1)
