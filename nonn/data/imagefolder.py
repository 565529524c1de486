"""A folder of images, one subfolder per class.

``PATH/train/CLASS/*.jpg`` and ``PATH/test/CLASS/*.jpg``, or ``PATH/CLASS/*.jpg`` with the test split drawn. Each image
becomes [3, size, size]: the largest centre square, scaled, so that the aspect ratio is kept. Photographs are rotated
by their EXIF orientation.

Limits: all images are in memory: 10,000 images of 224×224 are 1.5 GB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nonn.bundle.inputs import IMAGE_SUFFIXES, prepared_image
from nonn.bundle.preprocess import Preprocess
from nonn.config import DataConfig
from nonn.data.dataset import Split
from nonn.data.images import decode_all
from nonn.data.source import Source, find
from nonn.data.splits import split_by_share
from nonn.errors import ConfigError, DataError

__all__ = ["read"]

STEPS = Preprocess(orientation="exif", crop="centre", resize="bicubic", channels="RGB")


def read(config: DataConfig, seed: int) -> Source:
    """Reads the folder; ``seed`` draws the test split where there is no folder of that name.

    Raises:
        ConfigError: ``data.size`` is not positive.
        DataError: a folder is missing or empty, a test class is not in train, or an image is broken.
    """
    if config.size < 1:
        raise ConfigError(f"data.size = {config.size}: must be at least 1 pixel")
    path = find(
        config,
        "a folder train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg",
        "put the images of each class into a separate folder",
    )
    name = path.resolve().name
    parts = [part for part in ("train", "test") if (path / part).is_dir()]
    if not parts:
        classes = _class_names(path)
        train, test = split_by_share(_read_split(path, classes, config.size), config.test, seed, name)
        return Source(name, train, test, classes, preprocess=STEPS)
    if len(parts) == 1:
        missing = path / ("test" if parts == ["train"] else "train")
        raise DataError(
            f"{missing}: no such folder next to {parts[0]}; create it, or name the folder of classes itself "
            f"with --set data.path={path / parts[0]} to have the test split drawn from it"
        )
    classes = _class_names(path / "train")
    unknown = sorted(set(_class_names(path / "test")) - set(classes))
    if unknown:
        raise DataError(f"{path / 'test' / unknown[0]}: no such class in {path / 'train'}, so it cannot be learned")
    train, test = (_read_split(path / part, classes, config.size) for part in ("train", "test"))
    return Source(name, train, test, classes, preprocess=STEPS)


def _class_names(folder: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; hidden folders are ignored.

    Raises:
        DataError: there are no class folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; the imagefolder reader needs a folder of class folders")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: no class folders in it; put the images of each class into a separate folder")
    return tuple(names)


def _read_split(folder: Path, classes: tuple[str, ...], size: int) -> Split:
    """Images [n, 3, size, size] and labels of one folder of class folders; a test folder may lack classes."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        images = sorted(file for file in (folder / name).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"{folder / name}: no images in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
        files += images
        labels += [label] * len(images)

    def load(i: int) -> Image.Image:
        with Image.open(files[i]) as image:
            return prepared_image(image, (size, size), STEPS)

    pixels = decode_all(len(files), load, lambda i: str(files[i]), large=True)
    return Split(pixels, np.asarray(labels, dtype=np.int64))
