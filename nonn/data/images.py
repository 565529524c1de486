"""Decodes many images into one array.

Small images are decoded sequentially: at 32×32 most of the time is spent in Python under its lock, and two threads take
1.5 times as long as one (10,000 WebP: 1.9 s against 1.4 s). From about 96×96 Pillow's decoders, which release the lock,
dominate, and threads help.

Limits: 8 bits per channel. Transparency is dropped, not blended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nonn.bundle.inputs import to_rgb
from nonn.errors import DataError

__all__ = ["decode_all"]

_GREY = ("1", "L")
_CHUNK = 32  # images per task
_LARGE = 96 * 96  # pixels from which threads were faster: 1.4 times at 96×96, 1.8 times at 224×224 on two cores


def decode_all(
    num: int, load: Callable[[int], Image.Image], describe: Callable[[int], str], *, large: bool = False
) -> NDArray[np.uint8]:
    """Decodes images of one size.

    Args:
        num: number of images.
        load: opens image i; called from several threads.
        describe: name of image i in errors.
        large: ``load`` makes small images from large files, so that threads help.

    Returns:
        [num, 1, H, W] if every image is grey, else [num, 3, H, W] in RGB.

    Raises:
        DataError: an image cannot be decoded, is not 8-bit or differs in size from the first; the message names it.
    """
    first = _pixels(0, load, describe)
    height, width = first.shape[:2]
    pixels = np.empty((num, 3, height, width), dtype=np.uint8)
    grey = np.zeros(num, dtype=bool)

    def decode(start: int) -> None:
        for i in range(start, min(start + _CHUNK, num)):
            image = _pixels(i, load, describe)
            if image.shape[:2] != (height, width):
                raise DataError(
                    f"{describe(i)}: {image.shape[1]}×{image.shape[0]} pixels, but the first image has "
                    f"{width}×{height}; images of different sizes need the imagefolder reader, which resizes"
                )
            grey[i] = image.ndim == 2
            pixels[i] = image if grey[i] else image.transpose(2, 0, 1)

    workers = os.cpu_count() if large or height * width >= _LARGE else 1
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(decode, range(0, num, _CHUNK)):
            pass
    return pixels[:, :1].copy() if grey.all() else pixels


def _pixels(i: int, load: Callable[[int], Image.Image], describe: Callable[[int], str]) -> NDArray[np.uint8]:
    """Image i as [H, W] if grey, else as [H, W, 3]."""
    try:
        image = load(i)
        image = image.convert("L") if image.mode in _GREY else to_rgb(image)
    except Exception as exc:  # Pillow's plugins raise OSError, SyntaxError, struct.error and more for broken files
        raise DataError(f"{describe(i)}: not a readable image: {exc}") from exc
    return np.asarray(image)
