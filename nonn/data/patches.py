"""Single-image distillation: training inputs that are patches of one picture, without labels.

Students that only imitate the teacher's answers need inputs, not data: crops of one picture with many details do.
Source: Asano & Saeed 2021, arXiv 2112.00725, who also rotate, shear and change colours; here patches are cropped,
mirrored and turned by quarters, and ``[data]`` may add its augmentation.

Limit: students and heads are trained without the data; the cut into parts, λ, temperatures and the accuracy table still
need the held-out and the test split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nonn.errors import ConfigError, DataError

__all__ = ["cut_patches"]

_LEAST_AREA = 1e-3  # of the picture; a patch has at least as many pixels as an input


def cut_patches(path: Path, count: int, shape: Sequence[int], seed: int) -> NDArray[np.uint8]:
    """Random patches of a picture [count, C, H, W], scaled to the size of an input.

    Args:
        path: the picture, of any format that Pillow reads.
        count: number of patches.
        shape: of one input (C, H, W), C 1 (grey) or 3 (RGB).
        seed: seed of places and sizes; areas are log-uniform.

    Raises:
        ConfigError: inputs are not grey or RGB images, or there is no such file.
        DataError: the file is no picture, or smaller than an input.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(f"distill.picture: is for inputs that are grey or RGB images, not {list(shape)}")
    if not path.is_file():
        raise ConfigError(f"distill.picture = '{path}': no such file")
    channels, height, width = shape
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if channels == 1 else "RGB")
    except OSError as exc:
        raise DataError(f"distill.picture = '{path}': not a readable picture: {exc}") from exc
    if picture.width < width or picture.height < height:
        raise DataError(f"{path}: {picture.width}×{picture.height} pixels are less than an input of {width}×{height}")
    rng = np.random.default_rng(seed)
    largest = min(picture.width / width, picture.height / height)
    smallest = min(largest, max(1.0, math.sqrt(_LEAST_AREA * picture.width * picture.height / (width * height))))
    patches = np.empty((count, channels, height, width), dtype=np.uint8)
    for patch, scale in zip(patches, np.exp(rng.uniform(math.log(smallest), math.log(largest), count)), strict=True):
        across, down = min(scale * width, picture.width), min(scale * height, picture.height)
        left, top = rng.uniform(0, picture.width - across), rng.uniform(0, picture.height - down)
        box = (left, top, left + across, top + down)
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
        pixels = np.atleast_3d(pixels).transpose(2, 0, 1)[:, :, :: 1 - 2 * int(rng.integers(2))]
        quarters = int(rng.integers(4)) if height == width else 2 * int(rng.integers(2))
        patch[:] = np.rot90(pixels, quarters, axes=(1, 2))
    return patches
