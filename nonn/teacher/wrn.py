"""Wide residual networks, for images and for sensor windows.

``wrn-DEPTH-WIDTH``: depth 6n + 4, three stages of n pre-activation blocks with 16, 32 and 64 times WIDTH channels;
the second and third stage halve the resolution. WIDTH may be a fraction, such as 0.5, for the smallest devices, which
also narrows the first convolution. With one-dimensional convolutions the same network is used for sensor windows
[B, C, T]. Source: Zagoruyko & Komodakis 2016, arXiv 1605.07146.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from nonn.teacher.convnet import ConvNet, conv, norm_relu, stages
from nonn.teacher.family import Family

__all__ = ["FAMILY", "Block", "WideResNet"]


class Block(nn.Module):
    """Pre-activation residual block: two 3-wide convolutions and an identity or 1-wide projection shortcut."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.pre = norm_relu(dims, inputs)
        self.first = conv(dims, inputs, outputs, 3, stride)
        self.between = norm_relu(dims, outputs)
        self.second = conv(dims, outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.project = None if same else conv(dims, inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, …] → [B, outputs, …]."""
        activated = self.pre(x)
        shortcut = x if self.project is None else self.project(activated)
        result: Tensor = shortcut + self.residual(activated)
        return result

    def residual(self, activated: Tensor) -> Tensor:
        """[B, inputs, …] → [B, outputs, …]."""
        result: Tensor = self.second(self.between(self.first(activated)))
        return result


class WideResNet(ConvNet):
    """A wide residual network.

    Args:
        depth: 6n + 4.
        width: multiplier of the channels, or one for each stage; the final stage has 64 · width filters.
        in_channels: C of the input.
        num_classes: K; 0 omits the classifier.
        dims: spatial axes, 2 for images, 1 for sensor windows.
        block: kind of its blocks.
    """

    def __init__(
        self,
        depth: int,
        width: float | tuple[float, float, float],
        in_channels: int,
        num_classes: int,
        dims: int = 2,
        block: type[Block] = Block,
    ) -> None:
        first, second, third = width if isinstance(width, tuple) else (width, width, width)
        scales = ((16, min(first, 1)), (16, first), (32, second), (64, third))
        channels = [round(base * scale) for base, scale in scales]
        stem = conv(dims, in_channels, channels[0], 3)
        layers = stages(channels, (depth - 4) // 6, partial(block, dims))
        super().__init__([stem, *layers, norm_relu(dims, channels[-1])], channels[-1], num_classes)


FAMILY = Family(
    "wrn",
    WideResNet,
    lambda depth, width: depth >= 10 and (depth - 4) % 6 == 0 and width >= 0.125,
    "depth must be 6n + 4 (10, 16, 22, 28, 34, 40 …) and width at least 0.125",
    depths=(10, 16, 22),
)
