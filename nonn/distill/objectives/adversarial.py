"""Adversarial feature maps: a discriminator for each device, which its student learns to deceive.

Student and discriminators learn in one step with one optimiser: the discriminator sees the student's maps without their
gradient, and the student is judged by the discriminator without its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from nonn.config import DistillConfig
from nonn.distill.objectives._common import full_precision, pool_to, unit
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.building import Compute, objective, summed
from nonn.errors import ConfigError, ShapeError
from nonn.teacher import Teacher, pool
from nonn.teacher.convnet import conv

__all__ = ["Afd", "Discriminator", "afd", "attention"]

_WIDTH = 16


class Discriminator(nn.Module):
    """Probability [B] that maps [B, C, …] are another network's: two 3-wide convolutions, average, sigmoid."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv(dims, channels, _WIDTH, 3), conv(dims, _WIDTH, _WIDTH, 3)
        self.last = nn.Linear(_WIDTH, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """[B]."""
        hidden = functional.leaky_relu(self.second(functional.leaky_relu(self.first(maps), 0.1)), 0.1)
        probability: Tensor = self.last(pool(hidden)).sigmoid()[:, 0].float()
        return probability


@full_precision
def afd(discriminator: nn.Module, own: Tensor, other: Tensor) -> Tensor:
    """L_D + L_G of one device, averaged over B, in [0, 3].

    ``L_D = (1 − D(f_other))² + D(f_own)²`` trains the discriminator alone, ``L_G = (1 − D(f_own))²`` the student alone.

    Args:
        discriminator: D.
        own: maps of the device [B, C, …].
        other: maps that it imitates [B, C, …]; no gradient flows into them.

    Source: Chung et al. 2020, arXiv 2002.01775, recalled; squared errors in place of logarithms as there. Their
    discriminators are deeper, with batch normalisation.
    """
    judged, imitated = discriminator(own.detach()), discriminator(other.detach())
    constant = {name: value.detach() for name, value in discriminator.named_parameters()}
    deceived = functional_call(discriminator, constant, (own,))
    loss: Tensor = ((1 - imitated).square() + judged.square() + (1 - deceived).square()).mean()
    return loss


@full_precision
def attention(maps: Tensor) -> Tensor:
    """Attention maps Σ_c A_c² [B, 1, …] of maps [B, C, …], with a mean square of 1 over positions.

    Raises:
        ShapeError: there is one position only, whose attention is always 1.
    """
    if maps.ndim < 3 or maps[0, 0].numel() < 2:
        raise ShapeError(
            f"afd: maps {list(maps.shape)} have one position; choose distill.objectives.afd.maps = 'features'"
        )
    energy = maps.square().sum(dim=1, keepdim=True)
    return unit(energy.flatten(1)).reshape(energy.shape) * math.sqrt(energy[0].numel())


class Afd(nn.Module):
    """Adversarial online distillation of feature maps, summed over devices.

    ``replicas``: the devices of a part form a one-way cycle, and each one imitates the next. ``teacher``: each one
    imitates the teacher's filters of its part. With attention maps this is adversarial distillation with task-driven
    attention, recalled, where the teacher's attention is that of its final filters.

    Args:
        widths: filters of each device's part [N].
        against: ``replicas`` or ``teacher``.
        maps: ``features`` or ``attention``.
    """

    def __init__(self, widths: Sequence[int], against: str, maps: str) -> None:
        super().__init__()
        self.widths, self.against, self.maps = tuple(widths), against, maps
        self.devices = nn.ModuleList()

    def prepare(self, teacher: Teacher, students: nn.Module, sample: Tensor | None) -> None:
        """Creates the discriminators for images or for windows."""
        dims = teacher.normalise.mean.ndim - 2
        channels = [1 if self.maps == "attention" else width for width in self.widths]
        self.devices = nn.ModuleList([Discriminator(dims, c) for c in channels])

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        losses = []
        for i, (device, own) in enumerate(zip(self.devices, batch.student_maps, strict=True)):
            other = batch.teacher_maps[i]
            if self.against == "replicas":
                if not batch.replicas[i]:
                    raise ConfigError(
                        f"distill.objectives.afd.against = 'replicas': device {i} is the only one of its part; choose "
                        "partition.parts so that every part has two devices, or against = 'teacher'"
                    )
                following = next((j for j in batch.replicas[i] if j > i), batch.replicas[i][0])
                other = pool_to(batch.student_maps[following], own.shape[2:])
            pair = (attention(own), attention(other)) if self.maps == "attention" else (own, other)
            losses.append(afd(device, *pair))
        return summed(losses)


@objective("afd")
def _afd(config: DistillConfig, widths: Sequence[int]) -> Compute:
    c = config.objectives.afd
    return Afd(widths, c.against, c.maps)
