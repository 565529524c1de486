"""Wide residual networks with a separate width for each stage: ``staged-wrn-DEPTH-WIDTHxWIDTHxWIDTH``.

The network ``wrn-DEPTH-WIDTH`` whose three stages have 16, 32 and 64 times their own width channels.
``student.model = "search:wrn-DEPTH"`` chooses the widths (``nonn.experiment.search``).
"""

from __future__ import annotations

import dataclasses

from nonn.teacher.wrn import FAMILY as WRN
from nonn.teacher.wrn import WideResNet

__all__ = ["FAMILY"]


def _build(
    depth: int, first: float, second: float, third: float, in_channels: int, num_classes: int, dims: int
) -> WideResNet:
    return WideResNet(depth, (first, second, third), in_channels, num_classes, dims)


FAMILY = dataclasses.replace(
    WRN,
    prefix="staged-wrn",
    build=_build,
    exists=lambda depth, *widths: all(WRN.exists(depth, width) for width in widths),
    seconds=("0.5x0.5x1", "0.5x1x1", "1x1x2", "1x2x2", "2x2x4", "2x4x4"),
)
