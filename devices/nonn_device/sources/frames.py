"""Pictures of any size as those of the bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.views import View, select_view
from nonn.errors import DataError
from nonn.sensing import SensingSpec

__all__ = ["fitted"]


def fitted(pictures: NDArray[Any], spec: SensingSpec, what: str) -> NDArray[np.uint8]:
    """Pictures of the size of a unit: the largest centre rectangle of its proportions, reduced to means of areas.

    Args:
        pictures: one [C, H, W] or several [n, C, H, W], of uint8.
        spec: of the unit.
        what: the source, for messages.

    Returns:
        [n, C, *spec.frame]

    Raises:
        DataError: other channels, no bytes, or smaller than that.
    """
    found = pictures[None] if pictures.ndim == 3 else pictures
    height, width = spec.frame
    if found.ndim != 4 or found.shape[1] != len(spec.channels) or found.dtype != np.uint8:
        raise DataError(
            f"{what}: pictures {pictures.dtype} {list(pictures.shape)}; the unit has uint8 "
            f"[{len(spec.channels)}, {height}, {width}] ({', '.join(spec.channels)})"
        )
    rows, columns = found.shape[2:]
    if rows < height or columns < width:
        raise DataError(f"{what}: pictures of {columns}×{rows} pixels; the bundle was trained on {width}×{height}")
    crop = min(rows, columns * height // width), min(columns, rows * width // height)
    top, left = (rows - crop[0]) // 2, (columns - crop[1]) // 2
    return select_view(found, View(crop=(top, left, *crop), resolution=(height, width)))
