"""A reader of a small image set: the first 20 classes of a parquet folder, 100 training images of each, at half height.

For studies that have to end on two cores: ``data.reader = "benchmarks.few_classes:read"``, with ``data.path`` and
``data.labels`` as for parquet. Training images are the first of each class in the file; test images are all of these
classes. A pixel is the mean of four, so that eight students train as one network, in a third of the time of 32×32
pixels. The files are decoded once a process.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from nonn.bundle.views import View, select_view
from nonn.config import DataConfig
from nonn.data import Split, parquet
from nonn.data.source import Source

__all__ = ["CLASSES", "PER_CLASS", "read"]

CLASSES, PER_CLASS = 20, 100


def read(config: DataConfig, seed: int) -> Source:
    """The training and test images of the first classes; the seed changes nothing."""
    return _read(config.path, config.labels)


@functools.cache
def _read(path: str, labels: str) -> Source:
    whole = parquet.read(DataConfig(reader="parquet", path=path, labels=labels), 0)
    train, test = whole.train, whole.test
    first = [np.flatnonzero(train.labels == number)[:PER_CLASS] for number in range(CLASSES)]
    return dataclasses.replace(
        whole,
        name=f"{whole.name}, {CLASSES} classes",
        train=_halved(train.take(np.sort(np.concatenate(first)))),
        test=_halved(test.take(np.flatnonzero(test.labels < CLASSES))),
        classes=whole.classes[:CLASSES],
    )


def _halved(split: Split) -> Split:
    """Pictures of half the height and width."""
    height, width = split.inputs.shape[2:]
    view = View(resolution=(height // 2, width // 2))
    return dataclasses.replace(split, inputs=select_view(split.inputs, view))
