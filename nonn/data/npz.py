"""Arrays in a NumPy ``.npz`` file: sensor windows [n, channels, time], or images [n, C, H, W] of uint8.

Windows become float32, multiplied by ``data.scale`` if that names an array. Class names are an array ``classes``, or
one with the name of the labels in the plural (``activity``: ``activities``); otherwise the labels are the names. If
samples come from persons or machines, ``data.group`` names that array: windows of one person are almost copies of each
other, so a split that divides a person's windows measures memory.

The held-out split is drawn by class from the training groups and divides them, unless ``data.held_out_by`` is
``group``: then whole groups are held out.
"""

from __future__ import annotations

import contextlib
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.preprocess import Preprocess
from nonn.config import DataConfig
from nonn.data.dataset import Split
from nonn.data.source import Source, find, number_classes
from nonn.data.splits import choose_groups, split_by_share
from nonn.errors import DataError
from nonn.files import numpy_reason

__all__ = ["read"]


def read(config: DataConfig, seed: int) -> Source:
    """Reads the arrays; ``seed`` draws the test split unless ``data.test_groups`` names it.

    Raises:
        DataError: the file is broken, an array is missing, contains Python objects or does not fit the others.
    """
    path = find(config, "an .npz file", "write one with numpy.savez")
    with contextlib.ExitStack() as stack:
        try:
            # Opened here, because NumPy does not close a file that it opened if the archive is broken.
            stream = stack.enter_context(path.open("rb"))
            archive = np.load(stream, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
            raise DataError(f"{path}: truncated, or not an .npz file ({numpy_reason(exc)})") from exc
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a single array; write inputs and labels into one file with numpy.savez")
        stack.enter_context(archive)
        inputs, scale = _inputs(archive, config, str(path))
        labels = _array(archive, config.labels, "labels", str(path))
        names = _class_names(archive, config.labels, labels, str(path))
        groups = _array(archive, config.group, "group", str(path)) if config.group else None
    numbers, classes = number_classes([labels], names, f"{path}, array '{config.labels}'")
    try:
        data = Split(inputs, numbers[0], None if groups is None or groups.shape != labels.shape else _places(groups))
    except DataError as exc:
        raise DataError(f"{path}: {exc}") from exc
    if groups is None:
        if config.test_groups:
            raise DataError(f"{path}: data.test_groups is set, so name the array of groups: --set data.group=NAME")
        train, test = split_by_share(data, config.test, seed, str(path))
    else:
        what = f"{path}, array '{config.group}'"
        if groups.shape != labels.shape:
            raise DataError(f"{what}: {list(groups.shape)} for {len(labels)} samples")
        tested = choose_groups(groups, config.test_groups, config.test, seed, what)
        train, test = data.take(np.flatnonzero(~tested)), data.take(np.flatnonzero(tested))
    steps = Preprocess(array=config.inputs, scale=scale)
    return Source(path.stem, train, test, classes, None if groups is None else groups[~tested], steps)


def _places(groups: NDArray[Any]) -> NDArray[np.int64]:
    """Windows of a group follow each other in the order of the file [n, 2]."""
    number = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    order = np.argsort(number, kind="stable")
    place = np.empty(len(number), np.int64)
    place[order] = np.arange(len(number)) - np.searchsorted(number[order], number[order])
    return np.stack([number, place], axis=1)


def _inputs(archive: Any, config: DataConfig, path: str) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Images unchanged, windows as float32 and scaled; and the scale of each channel."""
    inputs = _array(archive, config.inputs, "inputs", path)
    if inputs.ndim == 4 and inputs.dtype == np.uint8:
        if config.scale:
            raise DataError(f"{path}: data.scale is for windows [n, channels, time], not for images of uint8")
        return inputs, ()
    if inputs.ndim != 3 or inputs.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: array '{config.inputs}' is {list(inputs.shape)} of {inputs.dtype.name}; it must be windows "
            "[n, channels, time] or images [n, channels, height, width] of uint8"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which Split rejects
        windows = inputs.astype(np.float32)
    factors: tuple[float, ...] = ()
    if config.scale:
        scale = _array(archive, config.scale, "scale", path)
        if scale.shape != inputs.shape[1:2] or scale.dtype.kind not in "iuf":
            raise DataError(
                f"{path}: array '{config.scale}' is {list(scale.shape)} of {scale.dtype.name}; "
                f"{inputs.shape[1]} channels need as many numbers"
            )
        windows *= scale.astype(np.float32)[:, None]
        factors = tuple(scale.astype(np.float32).tolist())
    return windows, factors


def _class_names(archive: Any, name: str, labels: NDArray[Any], path: str) -> list[str] | None:
    """The array of class names for integer labels, if there is one with enough names."""
    if labels.dtype.kind not in "iu" or not labels.size:
        return None
    plural = name[:-1] + "ies" if name.endswith("y") else name + "s"
    for candidate in ("classes", plural):
        if candidate in archive.files:
            names = _array(archive, candidate, "labels", path)
            if names.ndim == 1 and names.dtype.kind == "U" and len(names) > labels.max():
                return [str(entry) for entry in names]
    return None


def _array(archive: Any, name: str, key: str, path: str) -> NDArray[Any]:
    """One array of the file.

    Raises:
        DataError: it is missing, broken, or made of Python objects.
    """
    if name not in archive.files:
        raise DataError(
            f"{path}: no array '{name}'; arrays: {', '.join(archive.files)}; name it with --set data.{key}=NAME"
        )
    try:
        array: NDArray[Any] = archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise DataError(f"{path}: array '{name}' cannot be read ({numpy_reason(exc)})") from exc
    return array
