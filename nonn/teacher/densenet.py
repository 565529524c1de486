"""Densely connected networks with bottlenecks and compression, for images and for sensor windows.

``densenet-bc-DEPTH-GROWTH``: depth 6n + 4, three dense blocks of n layers. A layer sees the outputs of all earlier ones
in its block, adds GROWTH channels through a 1-wide convolution to 4 · GROWTH channels and a 3-wide one, and each layer
is preceded by batch norm and ReLU. Between blocks, a 1-wide convolution halves the channels and an average halves the
resolution. The first convolution has 2 · GROWTH channels. Source: Huang et al. 2017, arXiv 1608.06993.

Two parts are computed in another order, with equal results:

- A channel enters every later layer of its block through another batch norm, whose statistics are always those of the
  same channel. So each map is normalised once, where it is made, and later layers only scale and shift it. A device
  folds the normalisation into the convolution before it.
- The transition averages before its convolution instead of after it, which is a quarter of the work.

Limits: for its parameters the network is accurate but slow, since each layer reads all earlier maps of its block. ONNX
Runtime keeps maps in its fastest layout where all numbers of channels are multiples of 16 on x86: growth 16 or 32 takes
less time per multiply-accumulate than 12 or 24.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn.teacher.convnet import Concat, ConvNet, conv, norm, norm_relu
from nonn.teacher.family import Family

__all__ = ["FAMILY", "DenseBlock", "DenseNet", "ScaleRelu"]

_BOTTLENECK = 4
_COMPRESSION = 0.5
_POOL: dict[int, type[nn.AvgPool1d] | type[nn.AvgPool2d]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}


class ScaleRelu(nn.Module):
    """The scale and shift of a batch norm for channels that are normalised already, and ReLU.

    Args:
        channels: C.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("zero", torch.zeros(channels), persistent=False)
        self.register_buffer("one", torch.ones(channels), persistent=False)

    def widen(self, count: int) -> None:
        """From now on the map has the channels of ``count`` networks side by side."""
        self.zero, self.one = self.zero.repeat(count), self.one.repeat(count)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, …] → [B, C, …]."""
        # As a batch norm with mean 0 and variance 1: one kernel, and one operator that runtimes fold and fuse.
        return functional.relu(functional.batch_norm(x, self.zero, self.one, self.weight, self.bias, eps=0.0))


class DenseLayer(nn.Module):
    """One layer of a dense block: all maps so far → one more map, normalised."""

    def __init__(self, dims: int, inputs: int, growth: int) -> None:
        super().__init__()
        hidden = _BOTTLENECK * growth
        self.join = Concat()
        self.pre = ScaleRelu(inputs)
        self.first = conv(dims, inputs, hidden, 1)
        self.between = norm_relu(dims, hidden)
        self.second = conv(dims, hidden, growth, 3)
        self.after = norm(dims, growth, affine=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps [B, C_i, …] → [B, growth, …]."""
        result: Tensor = self.after(self.second(self.between(self.first(self.pre(self.join(maps))))))
        return result


class DenseBlock(nn.Module):
    """A block whose layers see the outputs of all earlier ones, then the scale, shift and ReLU of what follows it.

    Args:
        dims: spatial axes.
        inputs: C of its input, which is normalised.
        growth: channels that each layer adds.
        layers: their number.
    """

    def __init__(self, dims: int, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(dims, inputs + i * growth, growth) for i in range(layers)])
        self.join = Concat()
        self.out_channels = inputs + layers * growth
        self.post = ScaleRelu(self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, …] → [B, out_channels, …]."""
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps))
        result: Tensor = self.post(self.join(maps))
        return result


class DenseNet(ConvNet):
    """A densely connected network with bottlenecks and compression.

    Args:
        depth: 6n + 4.
        growth: channels that each layer adds.
        in_channels: C of the input.
        num_classes: K; 0 omits the classifier.
        dims: spatial axes, 2 for images, 1 for sensor windows.
    """

    def __init__(self, depth: int, growth: float, in_channels: int, num_classes: int, dims: int = 2) -> None:
        added = round(growth)
        channels = 2 * added
        layers: list[nn.Module] = [conv(dims, in_channels, channels, 3), norm(dims, channels, affine=False)]
        for stage in range(3):
            if stage:
                inputs, channels = channels, int(_COMPRESSION * channels)
                layers += [_POOL[dims](2), conv(dims, inputs, channels, 1), norm(dims, channels, affine=False)]
            block = DenseBlock(dims, channels, added, (depth - 4) // 6)
            layers.append(block)
            channels = block.out_channels
        super().__init__(layers, channels, num_classes)


FAMILY = Family(
    "densenet-bc",
    DenseNet,
    lambda depth, growth: depth >= 10 and (depth - 4) % 6 == 0 and growth >= 1 and growth == int(growth),
    "depth must be 6n + 4 (10, 16, 22, 28, 34, 40 …) and growth a whole number of channels",
    depths=(16, 22, 28, 40),
    seconds=("4", "6", "8", "12", "16", "24", "32"),
)
