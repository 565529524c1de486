"""A network whose every number matters, as after training."""

from __future__ import annotations

import torch
from torch import nn

from nonn.students import Student
from nonn.teacher import Normalise


def trained_looking_student(
    dims: int = 2, model: str = "wrn-10-1", input_shape: tuple[int, ...] | None = None
) -> Student:
    """A student of images [1, 8, 8] or windows [9, 25] whose normalisation layers are not the identity."""
    shape = input_shape or ((1, 8, 8) if dims == 2 else (9, 25))
    torch.manual_seed(0)
    student = Student(model, shape, 12, Normalise([127.0] * shape[0], [70.0] * shape[0], dims))
    randomise_norms(student)
    return student.eval()


def randomise_norms(network: nn.Module) -> None:
    """Gives every normalisation layer statistics as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
