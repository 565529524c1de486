"""IDX files, the format of MNIST and its relatives (Fashion-MNIST, EMNIST, KMNIST): images [n, 1, H, W] of uint8.

``data.path`` is the folder with four files: images and labels of ``train``, and of ``t10k`` or ``test``, each also with
``.gz``. The format: two zero bytes, the type (8 is uint8), the number of axes, each axis as four bytes, most
significant first, then the values (LeCun, Cortes and Burges, "The MNIST database").
"""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.config import DataConfig
from nonn.data.dataset import Split
from nonn.data.source import Source, find, number_classes
from nonn.errors import DataError

__all__ = ["read"]

UINT8 = 8


def read(config: DataConfig, seed: int) -> Source:
    """Reads the four files; ``seed`` is not needed, since the format has a test split.

    Raises:
        DataError: a file is missing, broken or of another type; the message names it.
    """
    path = find(config, "a folder with IDX files", "download train-images-idx3-ubyte.gz and the others")
    splits = {}
    for split, names in {"train": ("train",), "test": ("t10k", "test")}.items():
        images, labels = (_array(_file(path, names, kind), axes) for kind, axes in (("images", 3), ("labels", 1)))
        if len(images) != len(labels):
            raise DataError(f"{path}: {len(images)} images and {len(labels)} labels of {split}")
        splits[split] = images[:, None], labels
    found = [splits[split][1].astype(np.int64) for split in ("train", "test")]
    numbers, classes = number_classes(found, None, str(path))
    train, test = (
        Split(splits[split][0], numbered) for split, numbered in zip(("train", "test"), numbers, strict=True)
    )
    return Source(path.name, train, test, classes)


def _file(folder: Path, splits: tuple[str, ...], kind: str) -> Path:
    """The file of one split and kind."""
    for split in splits:
        for found in sorted(folder.glob(f"*{split}-{kind}*")):
            return found
    raise DataError(f"{folder}: no file {splits[0]}-{kind}-idx*-ubyte, with or without .gz")


def _array(path: Path, axes: int) -> NDArray[Any]:
    """One file as an array of uint8 with so many axes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"{path}: cannot be read ({exc})") from exc
    if raw[:2] != b"\0\0" or len(raw) < 4 + 4 * axes or raw[2] != UINT8 or raw[3] != axes:
        raise DataError(f"{path}: not an IDX file of uint8 with {axes} axes; unpack it, or download it again")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
    if len(values) != prod(shape):
        raise DataError(f"{path}: {len(values)} values for {list(shape)}; it is truncated, download it again")
    return values.reshape(shape)
