"""Every objective inside of the students' training task, and through the trainer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from nonn.bundle.views import WHOLE, View
from nonn.distill import DistillTask, FusionLayer, Students
from nonn.distill.objectives import Batch
from nonn.distill.probes import classifier_weight, layers, tapped
from nonn.errors import ConfigError, ShapeError
from nonn.students import Student
from nonn.teacher import Normalise, Teacher, make_network, pool
from nonn.trainer import fit
from nonn.trainer.checkpoint import FILE as CHECKPOINT
from tests.objectives import (
    COUNTS,
    NAMES,
    ON_ANSWERS,
    PARTS,
    SAMPLE,
    distill,
    make_students,
    make_teacher,
    normalise,
    raw,
    total,
)
from tests.toys import toy_data
from tests.training import Unchanged, losses_of

LEARNED = {"vid", "crd", "srm", "simreg", "afd", "mimkd", "umts", "hint_points", "pixel"}
EARLY = {"hint_points", "pixel"}  # train what is before a layer
NETWORKS = {"pcl", "sokd"}  # with further networks for all devices
ON_LAYERS = {"fsp", "lckd", "rtk", "sokd", "hint_points", "pixel"}  # of the networks themselves
LABELS = torch.arange(12) % 10


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def task_of(teacher: Teacher | None = None, **weights: Any) -> DistillTask:
    config = distill(**weights)
    return DistillTask(
        teacher or make_teacher(), students_for(weights), PARTS, config, class_counts=COUNTS, sample=SAMPLE
    )


def students_for(weights: dict[str, Any]) -> Students:
    """Students of the whole picture, or of a smaller one for an objective that needs it."""
    return make_students(view=View(resolution=(6, 6)) if "pixel" in weights else WHOLE)


def train(task: DistillTask, folder: Path, epochs: int = 1, **changes: Any) -> list[dict[str, float]]:
    config = dataclasses.replace(task.config, epochs=epochs, batch=24, lr=0.01, **changes)
    return fit(task, *toy_data(48, seed=1), config, folder, seed=0, augment=Unchanged())


def variants() -> list[Any]:
    """Every objective alone, and its options that take another path."""
    alone = [pytest.param({name: 0.05}, id=name) for name in NAMES]
    return [
        *alone,
        pytest.param({"ce": {"on": "device"}, "kd": {"on": "device", "label_revision": 0.8}}, id="own answers"),
        pytest.param({"kd": {"on": "partial"}, "dkd": {"on": "partial", "weight": 0.1}}, id="partial answers"),
        pytest.param({"kd": {"standardise": True, "temperature": 2.0}}, id="standardised"),
        pytest.param({"dkd": {"label_revision": 0.8}}, id="revised"),
        pytest.param({"kd": {"top_k": 3, "selection": 0.1}, "dkd": {"selection": 0.5}}, id="top-k, selection"),
        pytest.param({"transfer": {"joint": True}}, id="joint"),
        pytest.param({"transfer": {"pooled": True}}, id="pooled"),
        pytest.param(dict.fromkeys(NAMES, 0.01), id="all at once"),
    ]


@pytest.mark.parametrize("weights", variants())
@pytest.mark.parametrize("bf16", ["off", "on"])
def test_every_objective_trains_through_the_trainer(weights: dict[str, Any], bf16: str, tmp_path: Path) -> None:
    task = task_of(failout="stratified", **weights)
    before = {name: p.detach().clone() for name, p in task.module.named_parameters()}
    teacher = {name: t.clone() for name, t in task.teacher.state_dict().items()}
    history = train(task, tmp_path, bf16=bf16, weight_decay=0.0)  # two steps
    assert set(history[0]) == set(weights)
    assert all(np.isfinite(v) for v in history[0].values())
    answers = bool(set(weights) & ON_ANSWERS) and "partial" not in str(weights)
    for name, parameter in task.module.named_parameters():
        if ("fusion" in name and not answers) or name.startswith("mean_teachers"):
            assert parameter.grad is None, name
        elif not set(weights) <= EARLY or not name.startswith("students"):
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name
    assert any(not torch.equal(parameter, before[name]) for name, parameter in task.module.named_parameters())
    assert all(torch.equal(t, teacher[name]) for name, t in task.teacher.state_dict().items())
    assert all(p.grad is None for p in task.teacher.parameters())
    storage = [t.data_ptr() for t in (*task.module.state_dict().values(), *task.teacher.state_dict().values())]
    assert len(set(storage)) == len(storage)


@pytest.mark.parametrize("weights", variants())
def test_students_that_train_together_have_the_losses_of_students_apart(weights: dict[str, Any]) -> None:
    config = distill("stratified", **weights)
    with torch.no_grad():
        apart, together = (
            losses_of(
                DistillTask(
                    make_teacher(),
                    students_for(weights),
                    PARTS,
                    dataclasses.replace(config, grouped=grouped),
                    class_counts=COUNTS,
                    sample=SAMPLE,
                ),
                raw(),
                LABELS,
                generator(),
            )
            for grouped in (False, True)
        )
    for name, loss in apart.items():
        assert together[name].item() == pytest.approx(loss.item(), rel=1e-3), name


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_parameters_of_objectives_live_beside_the_students_and_in_the_checkpoint(name: str, tmp_path: Path) -> None:
    weights: dict[str, Any] = {name: 0.05}
    task = task_of(**weights)
    own = {n for n, _ in task.module.named_parameters() if n.startswith(f"auxiliaries.{name}.devices.")}
    assert own
    assert {n.split(".")[3] for n in own} == {"0", "1", "2", "3"}
    assert set(task.students.state_dict()) == set(make_students().state_dict())
    train(task, tmp_path)
    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        keys = set(file.keys())
    assert {f"model.{n}" for n in own} | {f"momentum.{n}" for n in own} <= keys


def test_objectives_without_parameters_add_none() -> None:
    weights: dict[str, Any] = dict.fromkeys(set(NAMES) - LEARNED - NETWORKS, 0.1)
    task = task_of(**weights)
    assert {n.removeprefix("students.") for n in task.module.state_dict()} == set(task.students.state_dict())


def test_an_interrupted_run_with_objectives_parameters_goes_on_to_the_very_same_weights(tmp_path: Path) -> None:
    def cut(task: DistillTask) -> DistillTask:
        losses, left = task.losses, 3  # two steps an epoch: stops in the middle of the second

        def stopping(*args: Any) -> dict[str, torch.Tensor]:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return losses(*args)

        task.losses = stopping  # type: ignore[method-assign,assignment]
        return task

    weights: dict[str, Any] = dict.fromkeys([*LEARNED, *NETWORKS, "kd"], 0.05)
    whole, resumed = task_of(**weights), task_of(**weights)
    train(whole, tmp_path / "whole", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(cut(task_of(**weights)), tmp_path / "cut", epochs=2)
    train(resumed, tmp_path / "cut", epochs=2)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_parameters_of_objectives_start_from_the_seed_and_leave_other_draws_alone() -> None:
    def start(seed: int) -> torch.Tensor:
        teacher, students = make_teacher(), make_students()
        state = torch.get_rng_state()
        task = DistillTask(teacher, students, PARTS, distill(crd=1.0), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return next(task.module["auxiliaries"].parameters())

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ON_ANSWERS - {"mutual", "pcl", "sokd"} | EARLY])
def test_the_gradient_reaches_every_students_backbone_and_bridge(name: str) -> None:
    weights: dict[str, Any] = {name: 1.0}
    task = task_of(**weights)
    total(losses_of(task, raw(), LABELS, generator())).backward()  # type: ignore[no-untyped-call]
    for parameter_name, parameter in task.students.students.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert float(parameter.grad.abs().sum()) > 0, parameter_name


@pytest.mark.parametrize("name", [*sorted(ON_LAYERS), "simreg", "kd"])
@torch.no_grad()
def test_a_batch_of_layers_is_the_mean_of_its_samples(name: str) -> None:
    weights: dict[str, Any] = {name: 1.0}
    task = task_of(**weights)
    task.module.eval()

    def loss(some: slice) -> float:
        return losses_of(task, raw()[some], LABELS[some], generator())[name].item()

    halves = loss(slice(0, 6)), loss(slice(6, 12))
    assert halves[0] != pytest.approx(halves[1], rel=1e-3)
    assert loss(slice(0, 12)) == pytest.approx(sum(halves) / 2, rel=1e-3)


# ---- warm-up ---------------------------------------------------------------------------------------------------


def test_a_weight_rises_linearly_over_its_warm_up() -> None:
    task = task_of(kd={"weight": 2.0, "warm_up": 0.5}, ce=1.0)
    seen = []
    for progress in (0.0, 0.125, 0.25, 0.5, 0.9):
        task.progress = progress
        losses = losses_of(task, raw(), LABELS, generator())
        seen.append((losses["kd"].item(), losses["ce"].item()))
    full = seen[-1][0]
    assert [kd for kd, _ in seen] == pytest.approx([0.0, full / 4, full / 2, full, full], rel=1e-5)
    assert len({ce for _, ce in seen}) == 1
    assert full > 0


def test_before_the_trainer_says_how_far_it_is_weights_are_whole() -> None:
    losses = [losses_of(task_of(kd={"warm_up": w}), raw(), LABELS, generator())["kd"].item() for w in (0.0, 0.9)]
    assert losses[0] == losses[1] > 0


# ---- what objectives look at -----------------------------------------------------------------------------------


def test_own_answers_are_those_of_a_fusion_where_only_that_device_answered() -> None:
    task = task_of(mutual=1.0)
    task.students.eval()
    seen: list[Batch] = []
    term = task.terms["mutual"]

    def watched(batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return term.compute(batch)

    task.terms["mutual"] = dataclasses.replace(term, compute=watched)
    with torch.no_grad():
        losses_of(task, raw(), LABELS, generator())
        features = task.students.features(raw())
        for i, own in enumerate(seen[0].device_logits):
            answered = torch.zeros(12, 4, dtype=torch.bool)
            answered[:, i] = True
            torch.testing.assert_close(own, task.students.fusion(features, answered))


def test_partial_logits_of_the_parts_and_the_bias_are_the_teachers_answer() -> None:
    task = task_of(srrl=1.0)
    losses_of(task, raw(), LABELS, generator())
    with torch.no_grad():
        maps, logits = task.teacher(raw())
        pieces = [pool(maps[:, part]) @ w.T for part, w in zip(PARTS, task._classifier, strict=True)]
        classifier = task.teacher.network.classifier
        assert isinstance(classifier, nn.Linear)
        torch.testing.assert_close(torch.stack(pieces).sum(0) + classifier.bias, logits)


class Odd(nn.Module):
    """A teacher whose logits are no linear layer over its mean filters."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(1, 64, 3, stride=2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.stage(x).amax((2, 3)))
        return result


@pytest.mark.parametrize("weights", [{"srrl": 1.0}, {"kd": {"on": "partial"}}])
def test_partial_logits_are_refused_where_they_do_not_sum_to_the_answer(weights: dict[str, Any]) -> None:
    task = task_of(teacher=Teacher(Odd(), "stage", normalise()), **weights)
    with pytest.raises(ConfigError, match="one linear layer over the mean"):
        losses_of(task, raw(), LABELS, generator())


def test_the_classifier_is_found_by_what_it_explains_and_not_by_its_shape() -> None:
    teacher = make_teacher().eval()
    decoy = nn.Linear(64, 10)
    teacher.network.add_module("decoy", decoy)
    with torch.no_grad():
        found = classifier_weight(teacher, *teacher(raw()))
    assert isinstance(teacher.network.classifier, nn.Linear)
    assert found.data_ptr() == teacher.network.classifier.weight.data_ptr()


def test_layers_of_a_wide_residual_network_are_its_stem_and_the_ends_of_its_stages() -> None:
    network = make_network("wrn-16-2", 3, 0, 2)
    with tapped([network]) as (outputs,):
        network(torch.rand(2, 3, 16, 16))
    shapes = {name: tuple(o.shape[1:]) for name, o in outputs.items()}
    assert shapes == {"stem": (16, 16, 16), "stage-1": (32, 16, 16), "stage-2": (64, 8, 8)}
    assert list(layers(Odd())) == ["stem"]
    with pytest.raises(ConfigError, match="this network has none"):
        layers(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["fsp", "lckd"])
def test_no_hook_is_left_behind(name: str) -> None:
    weights: dict[str, Any] = {name: 1.0}
    task = task_of(**weights)
    losses_of(task, raw(), LABELS, generator())
    hooks = [len(m._forward_hooks) for network in (task.students, task.teacher) for m in network.modules()]
    assert sum(hooks) == 1  # the teacher's own, for its final stage


def test_lipschitz_kd_takes_the_layers_that_both_networks_have() -> None:
    task = task_of(teacher=Teacher(Odd(), "stage", normalise()), lckd=1.0)
    assert torch.isfinite(losses_of(task, raw(), LABELS, generator())["lckd"])


def test_a_stem_of_another_width_than_the_students_cannot_have_its_flow_compared() -> None:
    task = task_of(teacher=Teacher(Odd(), "stage", normalise()), fsp=1.0)
    with pytest.raises(ShapeError, match="lckd compares layers of any widths"):
        losses_of(task, raw(), LABELS, generator())


@pytest.mark.parametrize("weights", [{n: 0.05} for n in NAMES if n not in ("at", "pixel")], ids=lambda w: next(iter(w)))
def test_sensor_windows_train_too(weights: dict[str, Any]) -> None:
    layer = Normalise([0.0, 0.0], [1.0, 1.0], 1)
    torch.manual_seed(0)
    teacher = Teacher(make_network("wrn-10-1", 2, 5, 1), "features", layer)
    members = [Student("wrn-10-1", (2, 16), 32, layer) for _ in range(2)]
    students = Students(members, FusionLayer("zero-fill", [32] * 2, (0, 1), 5))
    task = DistillTask(
        teacher,
        students,
        [range(32), range(32, 64)],
        distill(**weights),
        class_counts=COUNTS[:5],
        sample=torch.randn(8, 2, 16),
    )
    losses = losses_of(task, torch.randn(6, 2, 16), torch.arange(6) % 5, generator())
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize("name", ["bkd", "dkpp"])
def test_an_objective_that_needs_class_counts_says_so(name: str) -> None:
    weights: dict[str, Any] = {name: 1.0}
    with pytest.raises(ConfigError, match=f"objectives.{name}: give the task class_counts"):
        DistillTask(make_teacher(), make_students(), PARTS, distill(**weights))


def test_groups_reach_the_answering_sets_of_training() -> None:
    config = dataclasses.replace(distill("groups", ce=1.0), failout_groups=((0, 1), (2, 3)), p_group=0.5, p_failout=0.0)
    task, seen = DistillTask(make_teacher(), make_students(), PARTS, config), []
    task.students.fusion.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    losses_of(task, raw(200), torch.zeros(200, dtype=torch.int64), generator())
    survivors = seen[0].sum(dim=1)
    assert set(survivors.tolist()) == {1, 2, 4}  # 1: both groups gone, and one device stands in
    two = seen[0][survivors == 2]
    assert torch.equal(two[:, 0], two[:, 1])
    assert torch.equal(two[:, 2], two[:, 3])
