"""Plain strided convolutions, for sensor windows on the smallest devices.

``strided-DEPTH-WIDTH``: DEPTH convolutions, 5 wide, each halving the resolution, with 16, 32, 64, 64 … times WIDTH
channels, batch norm and ReLU. At 25 Hz four of them cover 2.4 s. It has a third of the multiply-accumulates of a wrn-10
of the same width and a longer receptive field in time, which windows of movements need.
"""

from __future__ import annotations

import itertools

from torch import nn

from nonn.teacher.convnet import ConvNet, conv, norm_relu
from nonn.teacher.family import Family

__all__ = ["FAMILY", "Strided"]

_KERNEL = 5


class Strided(ConvNet):
    """A stack of strided convolutions.

    Args:
        depth: number of convolutions.
        width: multiplier of the channels.
        in_channels: C of the input.
        num_classes: K; 0 omits the classifier.
        dims: spatial axes, 2 for images, 1 for sensor windows.
    """

    def __init__(self, depth: int, width: float, in_channels: int, num_classes: int, dims: int = 1) -> None:
        channels = [in_channels, *(round(16 * width * min(2**i, 4)) for i in range(depth))]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [conv(dims, inputs, outputs, _KERNEL, 2), norm_relu(dims, outputs)]
        super().__init__(layers, channels[-1], num_classes)


FAMILY = Family(
    "strided",
    Strided,
    lambda depth, width: 1 <= depth <= 8 and width >= 0.125,
    "depth must be between 1 and 8 and width at least 0.125",
    depths=(3, 4, 5, 6),
)
