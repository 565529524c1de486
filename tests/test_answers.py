"""Stored answers of the teacher: the very augmentation and answer that a step would have made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from nonn.config import DataConfig, Experiment, load_experiment
from nonn.data.augment import Augment
from nonn.distill import DistillTask
from nonn.distill.answers import TeacherAnswers, ask
from nonn.errors import ConfigError, DataError
from nonn.experiment.stages import exclusive
from nonn.experiment.training import train
from nonn.experiment.workspace import Workspace
from nonn.trainer import Target, fit
from tests.objectives import PARTS, distill, make_students, make_teacher
from tests.toys import TINY, toy_data

VIEWS = 3
CONFIG = dataclasses.replace(distill("stratified", ce={}, kd={}), teacher_views=VIEWS, bf16="off", lr=0.02)


def augmentation(noise: float = 0.0) -> Augment:
    return Augment(DataConfig(crop=1, flip=True, noise=noise, cutout=2), [8.0], [4.0])


@pytest.fixture(scope="module")
def answers() -> TeacherAnswers:
    return ask(make_teacher(), toy_data(40, seed=1)[0], augmentation(), CONFIG, seed=5, device="cpu")


def test_an_answer_is_that_of_the_teacher_to_the_augmented_input(answers: TeacherAnswers) -> None:
    inputs = torch.from_numpy(toy_data(40, seed=1)[0])
    index, view = torch.tensor([3, 17, 39]), torch.tensor([2, 0, 1])
    draws, target = answers(index, view)
    with torch.no_grad():
        maps, logits = make_teacher().eval()(augmentation().apply(inputs[index], draws))
    # float16 has eleven significant bits.
    torch.testing.assert_close(target.logits, logits, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(target.pooled, maps.mean(dim=(2, 3)), rtol=2e-3, atol=1e-3)


def test_views_of_a_sample_differ(answers: TeacherAnswers) -> None:
    assert answers.views == VIEWS
    assert not torch.equal(answers.logits[:, 0], answers.logits[:, 1])


def test_a_file_gives_back_the_answers(answers: TeacherAnswers, tmp_path: Path) -> None:
    answers.save(tmp_path / "answers.safetensors")
    again = TeacherAnswers.load(tmp_path / "answers.safetensors", 40, VIEWS)
    assert torch.equal(again.logits, answers.logits)
    assert torch.equal(again.pooled, answers.pooled)
    assert all(torch.equal(again.draws[name], value) for name, value in answers.draws.items())


def test_answers_to_other_data_are_refused(answers: TeacherAnswers, tmp_path: Path) -> None:
    answers.save(tmp_path / "answers.safetensors")
    with pytest.raises(DataError, match=r"answers to \[40, 3\] samples and views, not \[41, 3\]; remove the folder"):
        TeacherAnswers.load(tmp_path / "answers.safetensors", 41, VIEWS)


def test_a_damaged_file_is_refused_with_its_name(answers: TeacherAnswers, tmp_path: Path) -> None:
    file = tmp_path / "answers.safetensors"
    answers.save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"answers\.safetensors: not readable"):
        TeacherAnswers.load(file, 40, VIEWS)


def test_noise_cannot_be_stored() -> None:
    with pytest.raises(ConfigError, match=r"data\.noise = 0\.2: distill\.teacher_views cannot store noise"):
        ask(make_teacher(), toy_data(4, seed=1)[0], augmentation(noise=0.2), CONFIG, seed=0, device="cpu")


def test_objectives_on_earlier_layers_are_refused(answers: TeacherAnswers) -> None:
    task = DistillTask(make_teacher(), make_students(), PARTS, distill("none", fsp={}))
    _, target = answers(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="fsp need the teacher's earlier layers, which are not stored"):
        task.losses(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), task.draw(4, torch.Generator()), target)


def test_a_step_from_stored_answers_never_asks_the_teacher(answers: TeacherAnswers, tmp_path: Path) -> None:
    task = DistillTask(make_teacher(), make_students(), PARTS, dataclasses.replace(CONFIG, epochs=8, batch=20))

    def fail(*_: object) -> None:
        raise AssertionError("the teacher ran")

    task.teacher.register_forward_pre_hook(fail)
    inputs, labels = toy_data(40, seed=1)
    history = fit(task, inputs, labels, task.config, tmp_path, seed=0, augment=augmentation(), replay=answers)
    assert np.isfinite(history[-1]["kd"])
    assert history[-1]["ce"] < history[0]["ce"]


def test_several_subsets_of_a_sample_average_their_losses() -> None:
    task = DistillTask(
        make_teacher(), make_students(), PARTS, dataclasses.replace(distill("stratified", kd={}), failout_draws=2)
    )
    inputs, labels = (torch.from_numpy(a) for a in toy_data(12, seed=1))
    draws = task.draw(12, torch.Generator().manual_seed(3))
    assert draws["answered"].shape == (2, 12, len(PARTS))
    target = Target(torch.randn(12, 10), torch.rand(12, task.teacher.num_filters))
    task.module.eval()
    both = task.losses(inputs.float(), labels, draws, target)["kd"]
    each = [task.losses(inputs.float(), labels, {"answered": a[None]}, target)["kd"] for a in draws["answered"]]
    torch.testing.assert_close(both, torch.stack(each).mean())


def test_every_method_reads_the_same_answers(tmp_path: Path) -> None:
    experiment: Experiment = load_experiment(
        None, [*TINY, "data.noise=0", "data.crop=1", "distill.teacher_views=2", "distill.epochs=1", "teacher.epochs=1"]
    )
    space = Workspace(experiment, tmp_path)
    with exclusive(space.root):
        train(space)
        file = space.root / "answers" / "answers.safetensors"
        written = file.stat().st_mtime_ns
        other = dataclasses.replace(experiment.partition, parts=1)
        train(space.changed(dataclasses.replace(experiment, partition=other), "other"))
    assert file.stat().st_mtime_ns == written
