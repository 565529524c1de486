"""Small units of grouped convolutions, stacked, in the manner of TissueNet: ``tissue-DEPTH-WIDTH``.

Depth 6n + 2, three stages of n equal units with 16, 32 and 64 times WIDTH channels; the second and third stage halve
the resolution. A unit filters cells of eight channels separately, three wide, and a 1-wide convolution mixes the cells;
its input is added if it has the shape of the output.

Source: the idea of TissueNet, grouped convolutions in basic units that are stacked, is recalled; its paper was not
reachable. A substitute: the stages, the size of a cell and the shortcut follow the other families here.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from nonn.teacher.convnet import ConvNet, conv, norm, norm_relu, stages
from nonn.teacher.family import Family

__all__ = ["FAMILY", "Tissue", "Unit"]

_CELL = 8


def _cells(channels: int) -> int:
    """The largest number of equal cells that have at least eight channels each; one for fewer channels."""
    return max(count for count in range(1, max(1, channels // _CELL) + 1) if channels % count == 0)


class Unit(nn.Module):
    """Filter every cell, mix the cells; the input is added if it has the shape of the output."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        cells = _cells(inputs)
        self.cells = nn.Sequential(conv(dims, inputs, inputs, 3, stride, groups=cells), norm_relu(dims, inputs))
        self.mix = nn.Sequential(conv(dims, inputs, outputs, 1), norm(dims, outputs))
        self.shortcut = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, …] → [B, outputs, …]."""
        result: Tensor = self.mix(self.cells(x))
        return x + result if self.shortcut else result


class Tissue(ConvNet):
    """A stack of units.

    Args:
        depth: 6n + 2.
        width: multiplier of the channels; the final convolutional stage has 64 · width filters.
        in_channels: C of the input.
        num_classes: K; 0 omits the classifier.
        dims: spatial axes, 2 for images, 1 for sensor windows.
    """

    def __init__(self, depth: int, width: float, in_channels: int, num_classes: int, dims: int = 2) -> None:
        channels = [round(base * width) for base in (16, 16, 32, 64)]
        stem = nn.Sequential(conv(dims, in_channels, channels[0], 3), norm_relu(dims, channels[0]))
        layers = stages(channels, (depth - 2) // 6, partial(Unit, dims))
        super().__init__([stem, *layers, norm_relu(dims, channels[-1])], channels[-1], num_classes)


FAMILY = Family(
    "tissue",
    Tissue,
    lambda depth, width: depth >= 8 and (depth - 2) % 6 == 0 and width >= 0.125,
    "depth must be 6n + 2 (8, 14, 20, 26 …) and width at least 0.125",
    depths=(8, 14, 20, 26),
)
