"""Stacked binary filters in flash: a bank of signs and one byte for each stack of channels, in place of all weights.

The weights of a convolution of ``nonn.teacher.binary_wrn`` in 8 bits have one magnitude in each output channel, and few
patterns of signs over four input channels. They are recognised by that, so nothing else of the export knows of them.
``nonn_stacked`` in ``integer.c`` composes the filters of four output channels at a time: to the same integers, with a
scratch memory of four filters.

Limits: 8 bits and C only, without CMSIS-NN. Elsewhere these students have the weights of ordinary ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stack", "find_stack"]

_DEPTH = 4  # channels of a stacked filter
_MOST = 256  # patterns that a byte selects from


@dataclass(frozen=True)
class Stack:
    """The weights of a convolution [O, C, …] as stacked filters of D channels.

    Attributes:
        depth: D.
        bank: signs of each pattern as bits, 1 for +, positions of the kernel first and then channels [P, bytes].
        chosen: pattern of each filter and stack [O, C / D].
        scale: magnitude of each filter [O].
    """

    depth: int
    bank: NDArray[np.uint8]
    chosen: NDArray[np.uint8]
    scale: NDArray[np.int8]


def find_stack(weight: NDArray[np.int8]) -> Stack | None:
    """The weights [O, C, height, width] as stacked filters; None if they are none, or this needs no less memory."""
    outputs, channels = weight.shape[:2]
    depth = math.gcd(channels, _DEPTH)
    scale = np.abs(weight).max(axis=(1, 2, 3))
    if (np.abs(weight) != scale[:, None, None, None]).any():
        return None
    signs = (weight > 0).reshape(outputs * (channels // depth), depth, -1).transpose(0, 2, 1)
    patterns, chosen = np.unique(signs.reshape(len(signs), -1), axis=0, return_inverse=True)
    bank = np.packbits(patterns, axis=1, bitorder="little")
    if len(bank) > _MOST or bank.size + chosen.size + outputs >= weight.size:
        return None
    return Stack(depth, bank, chosen.reshape(outputs, -1).astype(np.uint8), scale)
