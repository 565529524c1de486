"""Curriculum by instance: an epoch's samples come from the easiest ones, a share that grows with every phase.

The order is a buffer of the trained module, so a checkpoint has it. Every epoch has as many steps as without a
curriculum: easy samples come more often in early phases, and the budget is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["Curriculum", "Ranking"]


class Curriculum(nn.Module):
    """Samples in the order of their difficulty, and the share of them that a phase uses.

    Phase p of P uses the easiest (p + 1) / P of all samples, and ranks all of them anew at its start.

    Args:
        samples: n.
        phases: P.

    Source: Zhao et al. 2021, "Knowledge Distillation via Instance-level Sequence Learning", arXiv 2106.10885, recalled:
    that a snapshot of the student ranks the samples by their loss.
    """

    order: Tensor

    def __init__(self, samples: int, phases: int) -> None:
        super().__init__()
        self.phases = phases
        self.register_buffer("order", torch.arange(samples))

    def phase(self, epoch: int, epochs: int) -> int:
        """The phase p of an epoch, of ``epochs``."""
        return min(epoch * self.phases // epochs, self.phases - 1)

    def starts(self, epoch: int, epochs: int) -> bool:
        """Whether a phase starts with this epoch."""
        return epoch == 0 or self.phase(epoch, epochs) > self.phase(epoch - 1, epochs)

    def draw(self, epoch: int, epochs: int, count: int, generator: torch.Generator) -> Tensor:
        """Numbers of the samples of an epoch [count]: random orders of the phase's samples, one after the other."""
        easy = max(1, len(self.order) * (self.phase(epoch, epochs) + 1) // self.phases)
        orders = [torch.randperm(easy, generator=generator) for _ in range(-(-count // easy))]
        return self.order.cpu()[torch.cat(orders)[:count]]


@runtime_checkable
class Ranking(Protocol):
    """A training task with a curriculum, or None in its place.

    Attributes:
        curriculum: a part of the task's module.
        difficulty: (inputs [B, C, …], labels [B], phase) → the loss of each sample [B]; the module is in evaluation.
    """

    curriculum: Curriculum | None
    difficulty: Callable[[Tensor, Tensor, int], Tensor]
