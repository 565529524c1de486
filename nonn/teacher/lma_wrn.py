"""Wide residual networks with light multi-segment activations: ``lma-wrn-DEPTH-WIDTH``.

The network ``wrn-DEPTH-WIDTH`` whose blocks have a learned activation of eight linear segments in place of ReLU. Each
activation adds 16 parameters. The last one, after the final batch norm, stays ReLU.

In 8 bits the activation is a table of 256 values (``nonn.export.tables``).

Limits: segments may not meet, so a float student in C, whose sums are rounded in another way, can differ by a jump
where an input lies at the end of a segment.

Source: Xu et al. 2019, "Light Multi-Segment Activation for Model Compression", arXiv 1907.06870.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn

from nonn.teacher.wrn import FAMILY as WRN
from nonn.teacher.wrn import Block, WideResNet

__all__ = ["FAMILY", "Lma", "LmaBlock"]

_SEGMENTS = 8
_DECAY = 0.99
_EPS = 1e-5


class Lma(nn.Module):
    """y = (α_i + init_i) x + β_i with i = clamp(⌊(x − m + 3s) / (6s / b)⌋, 0, b − 1).

    The b segments divide six standard deviations s around the mean m of the layer's inputs, both moving averages over
    the batches with decay 0.99. init is 0 for the lower half of the segments and 1 above, so it starts like ReLU.

    Attributes:
        mean: m [1]; [N] of N networks that train as one.
        std: s, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        slope = (torch.arange(_SEGMENTS) >= _SEGMENTS // 2).float()
        self.slope = nn.Parameter(slope[None].clone())  # α + init
        self.offset = nn.Parameter(torch.zeros(1, _SEGMENTS))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))
        self.count = 1

    def widen(self, count: int) -> None:
        """From now on the map has the channels of ``count`` networks side by side."""
        self.count *= count

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, …] → [B, C, …]."""
        pieces = [
            self._one(piece, network)
            for network, piece in enumerate(x.chunk(self.count, dim=1) if self.count > 1 else [x])
        ]
        return torch.cat(pieces, dim=1) if self.count > 1 else pieces[0]

    def _one(self, x: Tensor, network: int) -> Tensor:
        """The map [B, C, …] of one network."""
        if self.training:
            with torch.no_grad():
                values = x.to(self.mean.dtype)
                self.mean[network].lerp_(values.mean(), 1 - _DECAY)
                self.std[network].lerp_(values.std(), 1 - _DECAY)
        mean, width = self.mean[network], self.std[network].clamp_min(_EPS) * (6 / _SEGMENTS)
        segment = ((x.to(mean.dtype) - mean) / width + _SEGMENTS / 2).floor().clamp(0, _SEGMENTS - 1).long()
        return x * self.slope[network][segment] + self.offset[network][segment]


class LmaBlock(Block):
    """A pre-activation residual block with learned activations."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(dims, inputs, outputs, stride)
        self.pre[1], self.between[1] = Lma(), Lma()


FAMILY = dataclasses.replace(WRN, prefix="lma-wrn", build=partial(WideResNet, block=LmaBlock))
