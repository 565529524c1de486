"""Wide residual networks of stacked binary filters: ``binary-wrn-DEPTH-WIDTH``, for small flash memories.

The network ``wrn-DEPTH-WIDTH``. Every filter of the 3-wide convolutions of its blocks is a stack of low-dimensional
filters of four channels, selected from a bank of 64 filters of ±1 that its layer shares, times a scale. The first
convolution and the 1-wide ones are ordinary.

A device gets the composed weights as an ordinary convolution: its ONNX file is that of a ``wrn``. C code in 8 bits has
selectors and signs, and composes the filters itself (``nonn.export.stacked``). ``flash_bytes`` is what selectors and
signs need where the other weights are float32.

Source: Lan & Lan 2021, "Compressing Deep Convolutional Neural Networks by Stacking Low-dimensional Binary Convolution
Filters", AAAI, arXiv 2010.02778, recalled. Deviation: the selector is the largest inner product of the bank with a
separate real weight, in place of a trained matrix, and the scale is that weight's mean magnitude (XNOR-Net, arXiv
1603.05279).
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nonn.teacher.convnet import Conv1d, Conv2d, conv
from nonn.teacher.wrn import FAMILY as WRN
from nonn.teacher.wrn import Block, WideResNet

__all__ = ["FAMILY", "BinaryBlock", "BinaryConv1d", "BinaryConv2d", "flash_bytes"]

_BANK = 64
_CHANNELS = 4
_KERNEL = 3
_FLOAT_BITS = 32
_DRAWN = 0.01  # standard deviation of the bank; small, so that training flips signs


class _BinaryConv(_ConvNd):
    """A convolution without bias whose weights are stacked from a bank.

    Attributes:
        weight: real weights [C', C, …]; they select, and their magnitude is the scale.
        bank: real values whose signs are the filters [64, C_b, …], C_b = gcd(C, 4).
        training_only: names of parameters that are not on the device.
    """

    bank: nn.Parameter
    training_only = ("bank",)

    def add_bank(self) -> None:
        """Draws the bank."""
        channels = math.gcd(self.in_channels, _CHANNELS)
        self.bank = nn.Parameter(_DRAWN * torch.randn(_BANK, channels, *self.kernel_size))

    def composed(self) -> Tensor:
        """Weights [C', C, …]: W = α sign(b_i) with i = argmax_i ⟨w, sign(b_i)⟩ for every stacked filter, α = mean|w|.

        The gradient of W is that of w; b_i gets α times the sum over the filters that select it.
        """
        networks, size = self.groups, self.bank[0].numel()  # as one network, side by side
        signs = torch.where(self.bank >= 0, 1.0, -1.0).to(self.bank.dtype) + (self.bank - self.bank.detach())
        signs = signs.reshape(networks, -1, size)
        with torch.no_grad():
            # In float64, which autocast leaves alone: rounding must not select other filters than the export does.
            similar = self.weight.reshape(networks, -1, size).double() @ signs.double().transpose(1, 2)
            chosen = similar.argmax(dim=2, keepdim=True).expand(-1, -1, size)
        scale = self.weight.detach().abs().mean(dim=tuple(range(1, self.weight.ndim)), keepdim=True)
        return scale * signs.gather(1, chosen).reshape(self.weight.shape) + (self.weight - self.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, …] → [B, C', …]."""
        return self._conv_forward(x, self.composed(), None)

    def flash_bits(self) -> int:
        """Bits of selectors, bank and scales."""
        selectors = self.weight.numel() // self.bank[0].numel()
        return selectors * math.ceil(math.log2(_BANK)) + self.bank.numel() + _FLOAT_BITS * self.out_channels

    def deployed(self) -> nn.Module:
        """An ordinary convolution with the composed weights."""
        layer = conv(len(self.kernel_size), self.in_channels, self.out_channels, _KERNEL, self.stride[0])
        layer.load_state_dict({"weight": self.composed().detach()})
        return layer.train(self.training)


class BinaryConv1d(_BinaryConv, Conv1d):
    """Over windows."""


class BinaryConv2d(_BinaryConv, Conv2d):
    """Over images."""


def _binary(dims: int, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """A padded 3-wide convolution of stacked filters over ``dims`` spatial axes."""
    kind = BinaryConv1d if dims == 1 else BinaryConv2d
    layer = kind(inputs, outputs, _KERNEL, stride, _KERNEL // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    layer.add_bank()
    return layer


class BinaryBlock(Block):
    """A pre-activation residual block of stacked filters."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(dims, inputs, outputs, stride)
        self.first, self.second = _binary(dims, inputs, outputs, stride), _binary(dims, outputs, outputs)


def flash_bytes(network: nn.Module, params: int) -> int:
    """Bytes for a network's weights: selectors and signs as bits, scales and all others as float32.

    Args:
        network: any network.
        params: number of its parameters on the device.

    Returns:
        0 for a network without stacked filters.
    """
    layers = [module for module in network.modules() if isinstance(module, _BinaryConv)]
    others = params - sum(layer.weight.numel() for layer in layers)
    return math.ceil((sum(layer.flash_bits() for layer in layers) + _FLOAT_BITS * others) / 8) if layers else 0


FAMILY = dataclasses.replace(WRN, prefix="binary-wrn", build=partial(WideResNet, block=BinaryBlock))
