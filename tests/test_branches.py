"""A teacher with a branch for each view: what each branch sees, modality dropout, and students taught by branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nonn.bundle.views import WHOLE, View
from nonn.config import DistillConfig, Experiment, TeacherConfig
from nonn.distill import DistillTask, FusionLayer, Students
from nonn.errors import ConfigError
from nonn.students import Student
from nonn.teacher import Branches, Normalise, Teacher, TeacherTask, build_teacher
from nonn.teacher.branches import drop_views
from nonn.toml import from_mapping

SHAPE, CLASSES = (6, 16), 3
VIEWS = (View((0, 1, 2)), View((3, 4)), View((0, 1, 2)))  # the third device has the view of the first


def teacher(copies: int = 1, views: tuple[View, ...] = VIEWS, **options: Any) -> tuple[Teacher, Branches]:
    torch.manual_seed(0)
    config = TeacherConfig(model="strided-2-0.5", branches=copies, **options)
    built = build_teacher(config, SHAPE, CLASSES, Normalise([1.0] * 6, [2.0] * 6, 1), views).eval()
    assert isinstance(built.network, Branches)
    return built, built.network


def inputs(batch: int = 8) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_a_branch_sees_its_view_only() -> None:
    built, branches = teacher()
    x = inputs()
    changed = x.clone()
    changed[:, 3] += 5.0
    with torch.no_grad():
        before, after = (branches.view_logits(built(each)[0]) for each in (x, changed))
    assert before.shape == (8, 2, CLASSES)
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("copies", [1, 2])
def test_the_logits_are_the_mean_of_those_of_different_branches(copies: int) -> None:
    built, branches = teacher(copies)
    with torch.no_grad():
        maps, logits = built(inputs())
        each = branches.branch_logits(maps)
        from_means = branches.branch_logits(maps.mean(dim=2))  # as stored answers of the teacher have them
    assert maps.shape[1] == built.num_filters == 2 * copies * 16
    assert each.shape == (8, 2 * copies, CLASSES)
    torch.testing.assert_close(logits, each.mean(dim=1))
    torch.testing.assert_close(from_means, each)
    assert (each[:, 0] - each[:, 1]).abs().max() > 1e-3


def test_one_view_for_all_devices_gives_an_ensemble() -> None:
    _, branches = teacher(3, (WHOLE, WHOLE))
    assert branches.views == (WHOLE,)
    assert len(branches.classifiers) == 3


def test_modality_dropout_leaves_views_out_of_the_mean() -> None:
    built, branches = teacher(2, modality_dropout=0.5, label_smoothing=0.1)
    x, labels = inputs(), torch.arange(8) % CLASSES
    task = TeacherTask(built, TeacherConfig(branches=2, modality_dropout=0.5, label_smoothing=0.1, branch_weight=0.5))
    kept = torch.tensor([[True, False]]).expand(8, -1)
    losses = task.losses(x, labels, {"kept": kept})
    each = branches.branch_logits(built(x)[0])
    alone = functional.cross_entropy(each[:, :2].mean(dim=1), labels, label_smoothing=0.1)
    torch.testing.assert_close(losses["ce"], alone)
    mean = torch.stack([functional.cross_entropy(each[:, i], labels, label_smoothing=0.1) for i in range(4)]).mean()
    torch.testing.assert_close(losses["branches"], 0.5 * mean)


def test_a_dropped_view_is_drawn_with_its_probability_and_one_stays() -> None:
    kept = drop_views(20_000, 5, 0.3, torch.Generator().manual_seed(0))
    assert kept.any(dim=1).all()
    assert kept.float().mean(dim=0).sub(0.7).abs().max() < 0.02  # 0.3^5 of all samples would keep none
    assert drop_views(50, 3, 0.99, torch.Generator().manual_seed(0)).sum(dim=1).min() == 1
    built, _ = teacher()
    assert TeacherTask(built, TeacherConfig(branches=1)).draw(8, torch.Generator()) == {}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_each_device_learns_from_the_branch_of_its_view(share: float) -> None:
    built, branches = teacher()
    sizes = [len(view.channels) for view in VIEWS]
    made = [
        Student("strided-2-0.5", (size, 16), 4, Normalise([0.0] * size, [1.0] * size, 1), view=view)
        for size, view in zip(sizes, VIEWS, strict=True)
    ]
    students = Students(made, FusionLayer("logit-average", [s.width for s in made], range(3), CLASSES))
    objectives = {"ce": {"weight": 0.0}, "kd": {"weight": 1.0, "on": "device"}, "transfer": {"weight": 0.0}}
    config = from_mapping(DistillConfig, {"branch_share": share, "objectives": objectives}, source="test", rules=False)
    task = DistillTask(built, students, [range(4)] * 3, config)
    x = inputs()
    draws = task.draw(len(x), torch.Generator().manual_seed(0))
    loss = task.losses(x, torch.zeros(8, dtype=torch.long), draws)["kd"]
    with torch.no_grad():
        maps, joint = built(x)
        views = branches.view_logits(maps)
        features = students.train().features(x)
        expected = torch.zeros(())
        for device, view in enumerate([0, 1, 0]):
            answered = (torch.arange(3) == device).expand(8, -1)
            log_p = functional.log_softmax(students.fusion(features, answered) / 4, dim=1)
            target = ((1 - share) * joint + share * views[:, view]) / 4
            expected += 16 * functional.kl_div(log_p, target.softmax(dim=1), reduction="batchmean")
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a_branch_teacher_that_cannot_be_built_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"teacher.branches: teacher.model = 'some.module:factory' is not one of"):
        build_teacher(TeacherConfig(model="some.module:factory", branches=1), SHAPE, CLASSES, Normalise([0], [1], 1))
    crops = (View(crop=(0, 0, 8, 8)), View(crop=(0, 0, 4, 8)))
    with pytest.raises(ConfigError, match=r"views must have one size, not 8×8 and 4×8"):
        Branches("wrn-10-1", crops, 1, (1, 8, 8), CLASSES)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"teacher": {"modality_dropout": 0.2}}, "teacher.modality_dropout"),
        ({"distill": {"branch_share": 0.5}}, "distill.branch_share"),
        ({"teacher": {"branches": 1}, "distill": {"branch_share": 0.5, "assistants": ["wrn-10-1"]}}, "branch_share"),
    ],
)
def test_options_of_branches_need_branches(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Experiment, tree, source="test")
