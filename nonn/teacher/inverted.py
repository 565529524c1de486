"""Inverted bottlenecks with depthwise convolutions, for images and for sensor windows.

``inverted-DEPTH-WIDTH``: depth 9n + 2, three stages of n blocks with 16, 32 and 64 times WIDTH channels; the second and
third stage halve the resolution. A block widens its input fourfold by a 1-wide convolution, filters each channel
separately, three wide, and narrows it again; only the widened maps have ReLU. ``se-inverted-DEPTH-WIDTH`` has a gate
for each widened channel before it is narrowed.

Sources: Sandler et al. 2018, arXiv 1801.04381; gates: Howard et al. 2019, arXiv 1905.02244. Deviations:
the stages of wide residual networks, an expansion of 4 instead of 6, and ReLU instead of ReLU6 and hard-swish.

Limits: few multiply-accumulates, but each depthwise one costs more time than one of a dense convolution.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor, nn

from nonn.teacher.convnet import ConvNet, SqueezeExcitation, conv, norm, norm_relu, stages
from nonn.teacher.family import Family

__all__ = ["FAMILY", "SE_FAMILY", "Inverted", "InvertedBlock"]

_EXPANSION = 4


class InvertedBlock(nn.Module):
    """Widen, filter each channel, narrow; the input is added if it has the shape of the output."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int, *, gated: bool) -> None:
        super().__init__()
        hidden = _EXPANSION * inputs
        self.widen_input = nn.Sequential(conv(dims, inputs, hidden, 1), norm_relu(dims, hidden))
        self.depthwise = nn.Sequential(conv(dims, hidden, hidden, 3, stride, groups=hidden), norm_relu(dims, hidden))
        # An eighth of the block's input channels; the gates are then a tenth of the network's parameters.
        self.gate = SqueezeExcitation(dims, hidden, reduction=8 * _EXPANSION) if gated else nn.Identity()
        self.narrow = nn.Sequential(conv(dims, hidden, outputs, 1), norm(dims, outputs))
        self.shortcut = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, …] → [B, outputs, …]."""
        result: Tensor = self.narrow(self.gate(self.depthwise(self.widen_input(x))))
        return x + result if self.shortcut else result


class Inverted(ConvNet):
    """A network of inverted bottlenecks.

    Args:
        depth: 9n + 2.
        width: multiplier of the channels; the final convolutional stage has 64 · width filters.
        in_channels: C of the input.
        num_classes: K; 0 omits the classifier.
        dims: spatial axes, 2 for images, 1 for sensor windows.
        gated: squeeze and excitation in every block.
    """

    def __init__(
        self, depth: int, width: float, in_channels: int, num_classes: int, dims: int = 2, *, gated: bool = False
    ) -> None:
        channels = [round(base * width) for base in (16, 16, 32, 64)]
        stem = nn.Sequential(conv(dims, in_channels, channels[0], 3), norm_relu(dims, channels[0]))
        layers = stages(channels, (depth - 2) // 9, partial(InvertedBlock, dims, gated=gated))
        super().__init__([stem, *layers, norm_relu(dims, channels[-1])], channels[-1], num_classes)


def _exists(depth: int, width: float) -> bool:
    return depth >= 11 and (depth - 2) % 9 == 0 and width >= 0.125


_RULE = "depth must be 9n + 2 (11, 20, 29, 38, 47 …) and width at least 0.125"

FAMILY = Family("inverted", Inverted, _exists, _RULE, depths=(11, 20, 29, 38))
SE_FAMILY = dataclasses.replace(FAMILY, prefix="se-inverted", build=partial(Inverted, gated=True))
