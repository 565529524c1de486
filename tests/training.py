"""Augmentations and steps for tests of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nonn.trainer import Task

__all__ = ["Unchanged", "losses_of"]


class Unchanged:
    """The augmentation that only converts to float32."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def apply(self, inputs: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        return inputs.float()


def losses_of(task: Task, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Losses of a batch with new random numbers."""
    return task.losses(inputs, labels, task.draw(len(inputs), generator))
