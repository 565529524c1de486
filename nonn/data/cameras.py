"""A made data set: several cameras with their own view of one scene, from pictures that have one.

Each of N cameras looks at a fixed box of three quarters of the picture's side, at positions spread around its border.
In half of its pictures a rectangle hides something, and every pixel has noise; both differ from camera to camera. The
cameras' channels follow each other, so that ``devices.view = "split"`` gives each device its own camera.

Limits: no real cameras: boxes of one flat picture have no parallax, and occlusions are independent of each other. The
name of the data set says that it is made. A camera's picture is the same in every epoch; augmentation comes on top.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.preprocess import Preprocess
from nonn.data.dataset import Split
from nonn.data.source import Source
from nonn.errors import ConfigError

__all__ = ["boxes", "with_cameras"]

SIDE, HIDDEN, P_HIDDEN, NOISE = 0.75, 0.5, 0.5, 12.0  # shares of the side, a probability, levels of 255


def with_cameras(source: Source, cameras: int, seed: int) -> Source:
    """The data as this many cameras see them, [n, cameras · C, h, w]; unchanged for 0.

    Args:
        source: pictures [n, C, H, W] of uint8.
        cameras: N.
        seed: of occlusions and noise.

    Raises:
        ConfigError: the data are not pictures.
    """
    if not cameras:
        return source
    if source.train.inputs.ndim != 4:
        raise ConfigError(f"data.cameras: is for pictures, not for inputs {list(source.train.inputs.shape[1:])}")
    rng = np.random.default_rng((seed, 11))
    made = [Split(_seen(split.inputs, cameras, rng), split.labels) for split in (source.train, source.test)]
    name = f"{source.name}, {cameras} made cameras"
    return replace(source, name=name, train=made[0], test=made[1], preprocess=Preprocess())


def boxes(height: int, width: int, cameras: int) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width of each camera's box, on an ellipse around the middle."""
    rows, columns = max(1, round(SIDE * height)), max(1, round(SIDE * width))
    angles = [2 * math.pi * i / cameras + math.pi / 4 for i in range(cameras)]
    free = height - rows, width - columns
    return [
        (round((1 + math.sin(a)) / 2 * free[0]), round((1 + math.cos(a)) / 2 * free[1]), rows, columns) for a in angles
    ]


def _seen(pictures: NDArray[np.uint8], cameras: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pictures of all cameras, one after the other along the channels."""
    result = []
    for top, left, height, width in boxes(pictures.shape[2], pictures.shape[3], cameras):
        seen = pictures[:, :, top : top + height, left : left + width].copy()
        level = float(pictures.max()) / 255
        hidden = _rectangles(len(seen), height, width, rng)[:, None]
        seen = np.where(hidden, 0, seen + rng.normal(0, NOISE * level, seen.shape).astype(np.float32))
        result.append(seen.clip(0, 255).round().astype(np.uint8))
    return np.concatenate(result, axis=1)


def _rectangles(number: int, height: int, width: int, rng: np.random.Generator) -> NDArray[Any]:
    """True where something hides the scene [n, h, w]: one rectangle in half of the pictures."""
    inside = []
    for length in (height, width):
        size = max(1, round(HIDDEN * length))
        start = rng.integers(0, length - size + 1, (number, 1))
        place = np.arange(length)
        inside.append((place >= start) & (place < start + size))
    there = rng.random(number) < P_HIDDEN
    return inside[0][:, :, None] & inside[1][:, None, :] & there[:, None, None]
