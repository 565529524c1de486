"""Wide residual networks with squeeze and excitation: ``se-wrn-DEPTH-WIDTH``.

The network ``wrn-DEPTH-WIDTH`` whose every block scales its residual by a gate for each channel, from the mean of all
channels over the whole map. The gates add 2 % to the parameters of ``wrn-16-1`` and 0.01 % to its multiply-accumulates
(``nonn bench students``).

Source: Hu, Shen & Sun 2018, arXiv 1709.01507; their reduction is 16, for hundreds of channels; here it is 8.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor

from nonn.teacher.convnet import SqueezeExcitation
from nonn.teacher.wrn import FAMILY as WRN
from nonn.teacher.wrn import Block, WideResNet

__all__ = ["FAMILY", "SEBlock"]


class SEBlock(Block):
    """A pre-activation residual block with a gate for each channel of its residual."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(dims, inputs, outputs, stride)
        self.gate = SqueezeExcitation(dims, outputs)

    def residual(self, activated: Tensor) -> Tensor:
        """[B, inputs, …] → [B, outputs, …]."""
        result: Tensor = self.gate(super().residual(activated))
        return result


FAMILY = dataclasses.replace(WRN, prefix="se-wrn", build=partial(WideResNet, block=SEBlock))
