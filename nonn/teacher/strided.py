"""Plain strided convolutions, for sensor windows on the smallest devices.

``strided-DEPTH-WIDTH``: DEPTH convolutions, 5 wide, each halving the resolution, with 16, 32, 64, 64 … times WIDTH
channels, batch norm and ReLU. At 25 Hz four of them see 2.4 s. A third of the multiply-accumulates of a wrn-10 of the
same width, and it reaches further back in time, which is what windows of movements ask for.
"""

from __future__ import annotations

import itertools
import re

from torch import Tensor, nn

from nonn.errors import ConfigError
from nonn.teacher.wrn import conv, norm_relu, pool

__all__ = ["Strided", "parse_strided"]

_KERNEL = 5


class Strided(nn.Module):
    """A stack of strided convolutions.

    Args:
        depth: number of convolutions.
        width: multiplier of the channels.
        in_channels: C of the input.
        num_classes: K; 0 leaves the classifier away.
        dims: spatial axes, 2 for images, 1 for sensor windows.

    Attributes:
        features: the submodule whose output is the final convolutional stage after BN and ReLU.
        out_channels: its number of filters.
    """

    def __init__(self, depth: int, width: float, in_channels: int, num_classes: int, dims: int = 1) -> None:
        super().__init__()
        channels = [in_channels, *(round(16 * width * min(2**i, 4)) for i in range(depth))]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [conv(dims, inputs, outputs, _KERNEL, 2), norm_relu(dims, outputs)]
        self.out_channels = channels[-1]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(self.out_channels, num_classes) if num_classes else None
        if self.classifier is not None:
            nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of inputs [B, C, …]; without a classifier the final feature map [B, out_channels, …]."""
        maps: Tensor = self.features(x)
        if self.classifier is None:
            return maps
        logits: Tensor = self.classifier(pool(maps))
        return logits


def parse_strided(name: str) -> tuple[int, float] | None:
    """Depth and width of ``strided-DEPTH-WIDTH``, None for another kind of name.

    Raises:
        ConfigError: it is one of a depth or width that does not exist.
    """
    match = re.fullmatch(r"strided-(\d+)-(\d+(?:\.\d+)?)", name)
    if match is None:
        return None
    depth, width = int(match[1]), float(match[2])
    if not 1 <= depth <= 8 or width < 0.125:
        raise ConfigError(f"model '{name}': depth must lie between 1 and 8 and width be at least 0.125")
    return depth, width
