"""The form in which a teacher with given weights gets its inputs, and what shows that it is the wrong one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nonn.config import TeacherConfig
from nonn.data import Dataset, Split
from nonn.errors import ConfigError
from nonn.experiment.contract import contract_warnings, normalisation
from nonn.teacher import Teacher

CLASSES = ("ant", "bee", "cat", "dog")


class Decoder(nn.Module):
    """Reads the class from the level of the first channel, which it expects to be normalised with ImageNet's values."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.features, self.order = nn.Identity(), order

    def forward(self, x: Tensor) -> Tensor:
        level = 255 * (self.features(x)[:, 0, 0, 0] * 0.229 + 0.485)
        centres = 30.0 + 40 * torch.arange(len(CLASSES))
        logits: Tensor = -((level[:, None] - centres[self.order]) ** 2)
        return logits


def dataset(*, bgr: bool = False) -> Dataset:
    def split(num: int) -> Split:
        labels = np.arange(num) % len(CLASSES)
        levels = np.stack([30 + 40 * labels, np.full(num, 90), np.full(num, 90)], axis=1).astype(np.uint8)
        return Split(np.broadcast_to((levels[:, ::-1] if bgr else levels)[:, :, None, None], (num, 3, 2, 2)), labels)

    return Dataset.of("levels", split(40), split(8), split(8), CLASSES)


def warnings(config: TeacherConfig, data: Dataset, order: tuple[int, ...] = (0, 1, 2, 3)) -> str:
    teacher = Teacher(Decoder(list(order)), "features", normalisation(config, data))
    before = teacher.normalise
    found = " ".join(contract_warnings(teacher, data, "cpu"))
    assert teacher.normalise is before
    return found


def test_a_wrong_form_of_inputs_is_found_with_the_option_that_mends_it() -> None:
    right = TeacherConfig(normalise="imagenet")
    by_hand = TeacherConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert warnings(right, dataset()) == warnings(by_hand, dataset()) == ""
    found = warnings(TeacherConfig(), dataset())
    assert "100.0% with teacher.normalise = 'imagenet': it was probably trained so" in found
    assert "channels in the order BGR" in warnings(right, dataset(bgr=True))
    found = warnings(right, dataset(), (3, 1, 2, 0))
    assert "its outputs look like dog, bee, cat, ant; the data have ant, bee, cat, dog" in found


def test_a_teacher_that_knows_nothing_is_reported() -> None:
    data = dataset()
    train, held_out = (Split(np.full_like(s.inputs, 9), s.labels) for s in (data.train, data.held_out))
    constant = dataclasses.replace(data, train=train, held_out=held_out)
    assert "little more than the most frequent class alone" in warnings(TeacherConfig(normalise="imagenet"), constant)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (TeacherConfig(mean=(0.5,), std=(0.5,)), "1 values, the inputs have 3 channels"),
        (TeacherConfig(mean=(120, 110, 100), std=(50, 50, 50)), "divide mean and std by 255"),
    ],
)
def test_a_normalisation_that_does_not_suit_the_inputs_is_refused(config: TeacherConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        normalisation(config, dataset())
