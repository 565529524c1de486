"""Layers that the families of the zoo share, and a classifier over pooled feature maps.

``nonn.students.grouped`` trains several networks of one architecture as one network, with their channels side by side.
A layer of the zoo therefore has parameters with one row per channel, and a layer that depends on the order of the
channels has a method ``widen``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["Concat", "Conv1d", "Conv2d", "ConvNet", "SqueezeExcitation", "conv", "norm", "norm_relu", "pool", "stages"]


class _ExactWhereNarrow(_ConvNd):
    """A convolution that is right in bfloat16 on a CPU.

    Of maps one or two columns wide, oneDNN (in torch 2.13) gives wrong values and gradients, some of them NaN, for
    3-wide convolutions with a stride in bfloat16; so these run in float32.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = x.shape[-1] <= 2 and self.stride[-1] > 1 and self.kernel_size[-1] > 1
        if narrow and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super()._conv_forward(x.float(), weight.float(), bias)
        return super()._conv_forward(x, weight, bias)


class Conv1d(_ExactWhereNarrow, nn.Conv1d):
    """Over windows."""


class Conv2d(_ExactWhereNarrow, nn.Conv2d):
    """Over images."""


_CONV: dict[int, type[Conv1d] | type[Conv2d]] = {1: Conv1d, 2: Conv2d}
_NORM: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def conv(dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A padded convolution without bias over ``dims`` spatial axes, He-initialised."""
    layer = _CONV[dims](inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    if layer.weight.is_meta:  # only measured: torch would take longer to draw no weights than for all the rest
        return layer
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if groups > 1:  # the line above counts the outputs of all groups, but an input reaches those of one
        layer.weight.data.mul_(groups**0.5)
    return layer


def norm(dims: int, channels: int, *, affine: bool = True) -> nn.Module:
    """Batch normalisation."""
    return _NORM[dims](channels, affine=affine)


def norm_relu(dims: int, channels: int) -> nn.Sequential:
    """Batch normalisation and ReLU."""
    return nn.Sequential(norm(dims, channels), nn.ReLU(inplace=True))


def stages(channels: Sequence[int], blocks: int, build: Callable[[int, int, int], nn.Module]) -> list[nn.Module]:
    """The blocks of all stages of a residual network; every stage but the first halves the resolution.

    Args:
        channels: C before the first stage, and of the output of each stage.
        blocks: number of blocks of a stage.
        build: (C of the input, C of the output, stride) → one block.
    """
    layers = []
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
        layers.append(build(inputs, outputs, 2 if stage else 1))
        layers += [build(outputs, outputs, 1) for _ in range(blocks - 1)]
    return layers


class SqueezeExcitation(nn.Module):
    """A gate for each channel, computed from the mean of all channels. Source: Hu et al. 2018, arXiv 1709.01507.

    Args:
        dims: spatial axes.
        channels: C.
        reduction: the gates are computed through C / reduction hidden channels, at least four.
    """

    def __init__(self, dims: int, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        layer = _CONV[dims]
        self.gates = nn.Sequential(layer(channels, hidden, 1), nn.ReLU(inplace=True), layer(hidden, channels, 1))
        self.axes = tuple(range(2, 2 + dims))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, …] → [B, C, …]."""
        gates: Tensor = self.gates(x.mean(self.axes, keepdim=True))
        return x * gates.sigmoid()


class Concat(nn.Module):
    """Concatenates feature maps along their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 1

    def widen(self, count: int) -> None:
        """From now on every map has the channels of ``count`` networks side by side, which stay together."""
        self.count *= count

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, …] → [B, ΣC_i, …]; of N networks [B, N · C_i, …] → [B, N · ΣC_i, …], network by network."""
        if self.count == 1:
            return torch.cat(list(maps), dim=1)
        # Images have their channels innermost in memory, so moving them to the end is free, and there is one copy.
        last = [m.movedim(1, -1) for m in maps]
        pieces = [m.reshape(*m.shape[:-1], self.count, -1) for m in last]
        return torch.cat(pieces, dim=-1).flatten(-2).movedim(-1, 1)


def pool(maps: Tensor) -> Tensor:
    """Global average over the spatial axes [B, C, …] → [B, C], in float32."""
    return maps.float().flatten(2).mean(dim=2) if maps.ndim > 2 else maps.float()


class ConvNet(nn.Module):
    """Convolutional layers and a linear classifier over the average of their last feature maps.

    Args:
        layers: all layers up to the final convolutional stage after BN and ReLU.
        out_channels: number of filters of that stage.
        num_classes: K; 0 omits the classifier.

    Attributes:
        features: the submodule whose output is the final convolutional stage.
    """

    def __init__(self, layers: Sequence[nn.Module], out_channels: int, num_classes: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(out_channels, num_classes) if num_classes else None
        if self.classifier is not None:
            nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of inputs [B, C, …]; without a classifier the final feature map [B, out_channels, …]."""
        maps: Tensor = self.features(x)
        if self.classifier is None:
            return maps
        logits: Tensor = self.classifier(pool(maps))
        return logits
