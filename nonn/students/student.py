"""A student: a small backbone and a bridge to its part of the teacher's filters.

The bridge is a 1-wide convolution to the part's width with BN and ReLU; the device sends its spatial mean, |P_j|
floats. Source: Bhardwaj et al. 2019, arXiv 1907.11804.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nonn.teacher.teacher import Normalise
from nonn.teacher.wrn import conv, norm_relu, pool, wrn

__all__ = ["Student"]


class Student(nn.Module):
    """Raw inputs to the filters of one part.

    Args:
        model: ``wrn-DEPTH-WIDTH``.
        input_shape: of one sample [C, H, W] or [C, T].
        width: filters of its part, C_j.
        normalise: its first layer; every student gets one of its own.

    Raises:
        ConfigError: the model is unknown.
    """

    def __init__(self, model: str, input_shape: Sequence[int], width: int, normalise: Normalise) -> None:
        super().__init__()
        dims = len(input_shape) - 1
        self.normalise = normalise
        self.backbone = wrn(model, input_shape[0], 0, dims)
        self.bridge = nn.Sequential(conv(dims, self.backbone.out_channels, width, 1), norm_relu(dims, width))
        self.width = width

    def maps(self, x: Tensor) -> Tensor:
        """Feature maps after the bridge [B, C_j, …] of raw inputs [B, C, …], float32."""
        maps: Tensor = self.bridge(self.backbone(self.normalise(x)))
        return maps.float()

    def forward(self, x: Tensor) -> Tensor:
        """What the device sends: features [B, C_j] of raw inputs [B, C, …]."""
        return pool(self.maps(x))
