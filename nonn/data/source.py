"""Shared by readers: their result, the lookup of the path, and the conversion of labels to class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.preprocess import Preprocess
from nonn.config import DataConfig
from nonn.data.dataset import Split
from nonn.errors import DataError

__all__ = ["Source", "find", "number_classes"]


@dataclass(frozen=True, eq=False)
class Source:
    """The result of a reader: training data not yet divided, test data, class names [K].

    Attributes:
        groups: group of each training sample, such as a person; None where the data have none.
        preprocess: how files became inputs, for the bundle.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    groups: NDArray[Any] | None = None
    preprocess: Preprocess = Preprocess()  # noqa: RUF009  (frozen)


def find(config: DataConfig, needed: str, get: str) -> Path:
    """Resolves the configured path.

    Args:
        config: the configuration; its ``path`` may start with ``~``.
        needed: what the path must be, for the message.
        get: how to get it, for the message.

    Raises:
        DataError: no path is configured, or it does not exist.
    """
    if not config.path:
        raise DataError(
            f"data.path is empty: the {config.reader} reader needs {needed}; {get}, then --set data.path=PATH"
        )
    path = Path(config.path).expanduser()
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; the {config.reader} reader needs {needed}; "
            f"{get}, or correct the path with --set data.path=PATH"
        )
    return path


def number_classes(
    labels: Sequence[NDArray[Any]], names: Sequence[str] | None, what: str
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Class numbers from 0 for labels of any integers or strings.

    Args:
        labels: arrays of labels [n_i], one per split.
        names: class names [K] that integer labels index; without them, each value that occurs is a class, named
            by its text, in ascending order.
        what: file and array or column, for the messages.

    Returns:
        The class numbers of each array [n_i], and the class names [K].

    Raises:
        DataError: labels are neither integers nor strings, not one per sample, or have no name.
    """
    kinds = {array.dtype.kind.replace("u", "i") for array in labels}
    if kinds not in ({"i"}, {"U"}) or any(array.ndim != 1 for array in labels):
        found = " and ".join(f"{list(array.shape)} of {array.dtype.name}" for array in labels)
        raise DataError(f"{what}: labels {found} must be [n] integers, or strings throughout")
    if kinds == {"i"}:  # int64 and uint64 together would become float64
        labels = [array.astype(np.int64) for array in labels]
    together = np.concatenate(labels)
    if names is not None and kinds == {"i"}:
        if together.size and (together.min() < 0 or together.max() >= len(names)):
            raise DataError(
                f"{what}: labels go from {together.min()} to {together.max()}, but there are {len(names)} "
                "class names; a label of -1 usually marks data without labels"
            )
        return list(labels), tuple(names)
    values = np.unique(together)
    numbers = [np.searchsorted(values, array).astype(np.int64) for array in labels]
    return numbers, tuple(str(value) for value in values)
