"""Pixel distillation: a student of a small picture learns to draw the large one."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn.bundle.views import View, select_view
from nonn.config import DistillConfig
from nonn.distill.objectives._common import full_precision
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import Compute, objective, summed
from nonn.distill.probes import tapped
from nonn.errors import ConfigError
from nonn.students import Student
from nonn.teacher import Teacher
from nonn.teacher.convnet import conv

__all__ = ["Pixel", "enlarged"]

_LAYER = "stem"


@full_precision
def enlarged(maps: Tensor, weight: Tensor, slope: Tensor, size: Sequence[int]) -> Tensor:
    """PReLU(PixelShuffle_r(W f)): a picture drawn from feature maps.

    Args:
        maps: f [B, C', h, w].
        weight: W of a 1-wide convolution [C · r², C', 1, 1].
        slope: of the PReLU, for each channel [C].
        size: height and width of the picture, at most r·h and r·w; what is beyond is cut off.

    Returns:
        [B, C, H, W].
    """
    factor = math.isqrt(len(weight) // len(slope))
    drawn = functional.pixel_shuffle(functional.conv2d(maps, weight), factor)
    return functional.prelu(drawn[..., : size[0], : size[1]], slope)


class Pixel(nn.Module):
    """Pixel distillation, its reconstruction: mean (PReLU(PixelShuffle_r(conv1×1(f_S))) − x)².

    f_S is the output of the student's first convolution, x the normalised picture that the device would see without
    ``resolution``, and r = ⌈H / h⌉. The mean is over pixels, channels and B, the sum over the devices that see less
    than that picture; the layers that draw it are dropped after the training. The paper's loss is KD and cross entropy,
    which are the terms ``kd`` and ``ce`` here, plus η = 50 times this.

    Source: Guo et al., Pixel Distillation, arXiv 2112.09532 (input spatial representation distillation). Their public
    code (gyguo/PixelDistillation) takes the mean absolute difference, draws from the first convolution, whose layer has
    no bias, and cuts off what is beyond the picture, as here; the square and η = 50 are recalled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.devices, self.normalise = nn.ModuleDict(), nn.ModuleDict()
        self._targets: dict[str, View] = {}

    @torch.no_grad()
    def prepare(self, teacher: Teacher, students: nn.Module, sample: Tensor | None) -> None:
        """Creates the layers that draw the picture.

        Raises:
            ConfigError: every device sees the picture as it is, or there are no inputs.
        """
        if sample is None:
            raise ConfigError("distill.objectives.pixel: give the task a sample of training inputs")
        training, individual = students.training, cast("Any", students).individual()
        with tapped([student.backbone for student in individual]) as taps:
            cast("Any", students.eval()).maps(sample[:2])
        students.train(training)
        for number, (student, tap) in enumerate(zip(individual, taps, strict=True)):
            self._add(str(number), student, tap[_LAYER], sample)
        if not self._targets:
            raise ConfigError(
                "distill.objectives.pixel: every device sees the whole picture, which leaves nothing to draw; set "
                "devices.resolution, or resolution in devices.views"
            )

    def _add(self, number: str, student: Student, maps: Tensor, sample: Tensor) -> None:
        target = replace(student.view, resolution=())
        channels, *size = select_view(sample[:1], target).shape[1:]
        if not student.view.resolution or tuple(size) == student.view.resolution:
            return
        factor = max(math.ceil(full / small) for full, small in zip(size, maps.shape[2:], strict=True))
        layer = conv(2, maps.shape[1], channels * factor**2, 1)
        self.devices[number] = nn.ModuleDict({"conv": layer, "prelu": nn.PReLU(channels)})
        self.normalise[number] = copy.deepcopy(student.normalise)
        self._targets[number] = target

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        assert batch.inputs is not None
        losses = []
        for number, target in self._targets.items():
            layers = cast("nn.ModuleDict", self.devices[number])
            picture = self.normalise[number](select_view(batch.inputs, target))
            weight, slope = cast("Tensor", layers["conv"].weight), cast("Tensor", layers["prelu"].weight)
            drawn = enlarged(batch.student_taps[int(number)][_LAYER], weight, slope, picture.shape[2:])
            losses.append(functional.mse_loss(drawn, picture))
        return summed(losses)


@objective("pixel", "student_taps")
def _pixel(config: DistillConfig, widths: Sequence[int]) -> Compute:
    return Pixel()
