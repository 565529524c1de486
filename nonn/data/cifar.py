"""CIFAR-10 and CIFAR-100 in their "python version": folders of pickled dictionaries.

A pickle can run any code when it is loaded. These are read by an unpickler that allows five names, none of which
imports or calls anything: plain stand-ins for the names of NumPy keep the bytes of the arrays.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.config import DataConfig
from nonn.data.dataset import Split
from nonn.data.source import Source, find, number_classes
from nonn.errors import DataError

__all__ = ["read"]

_TRAIN_10 = tuple(f"data_batch_{i}" for i in range(1, 6))


def read(config: DataConfig, seed: int) -> Source:
    """Reads the folder, given itself or by its parent; the files fix the test split, so ``seed`` is unused.

    CIFAR-100 is read with its 100 fine classes; ``data.labels = "coarse_labels"`` selects the 20 coarse ones.

    Raises:
        DataError: a file is missing, truncated or not a CIFAR file.
    """
    path = find(
        config,
        "the folder cifar-10-batches-py or cifar-100-python",
        "download and unpack cifar-10-python.tar.gz or cifar-100-python.tar.gz from "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-100-python"):
        if (folder / "batches.meta").exists():
            return _assemble("cifar-10", folder, _TRAIN_10, "test_batch", "batches.meta", "labels", "label_names")
        if (folder / "meta").exists():
            labels = "fine_labels" if config.labels == DataConfig().labels else config.labels
            names = labels.replace("labels", "label_names")
            return _assemble("cifar-100", folder, ("train",), "test", "meta", labels, names)
    raise DataError(
        f"{path}: neither batches.meta (CIFAR-10) nor meta (CIFAR-100) is in it; unpack cifar-10-python.tar.gz or "
        "cifar-100-python.tar.gz there, or name another folder with --set data.path=PATH"
    )


def _assemble(
    name: str, folder: Path, train_files: tuple[str, ...], test_file: str, meta_file: str, labels: str, names: str
) -> Source:
    """Combines the files of a folder."""
    batches = [_read_batch(folder / file, labels) for file in (*train_files, test_file)]
    classes = [
        entry.decode() if isinstance(entry, bytes) else str(entry)
        for entry in _entry(_load(folder / meta_file), names, list, folder / meta_file)
    ]
    numbers, named = number_classes([batch[1] for batch in batches], classes, str(folder))
    train = Split(np.concatenate([batch[0] for batch in batches[:-1]]), np.concatenate(numbers[:-1]))
    return Source(name, train, Split(batches[-1][0], numbers[-1]), named)


def _read_batch(file: Path, labels: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Images [n, 3, 32, 32] and labels [n] of one file."""
    batch = _load(file)
    try:
        pixels = _entry(batch, "data", _Array, file).pixels()
        numbers = np.asarray(_entry(batch, labels, list, file))
    except (TypeError, ValueError) as exc:
        raise DataError(f"{file}: {exc}; it must contain bytes [n, 3072] and n labels") from exc
    if pixels.ndim != 2 or pixels.shape[1] != 3072 or numbers.shape != pixels.shape[:1]:
        raise DataError(
            f"{file}: data {list(pixels.shape)} and labels {list(numbers.shape)}; should be [n, 3072] and [n]"
        )
    return pixels.reshape(-1, 3, 32, 32), numbers


def _entry(content: dict[str, Any], key: str, kind: type, file: Path) -> Any:
    """One entry of a file; an error if it is missing or has the wrong type."""
    if not isinstance(content.get(key), kind):
        raise DataError(f"{file}: no usable entry '{key}'; entries: {', '.join(content)}")
    return content[key]


def _load(file: Path) -> dict[str, Any]:
    """Reads one pickled dictionary; its keys may be byte strings, as Python 2 wrote them."""
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; the folder is incomplete, unpack the archive again") from None
    except DataError as exc:
        raise DataError(f"{file}: {exc}") from None
    except Exception as exc:  # a broken pickle raises nearly anything: EOFError, KeyError, AttributeError, …
        raise DataError(f"{file}: truncated, or not a CIFAR file; unpack the archive again ({exc!r})") from exc


class _Dtype:
    """Stand-in for ``numpy.dtype``: keeps the code."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Drops the rest: byte order and alignment are irrelevant for single bytes."""


class _Array:
    """Stand-in for ``numpy.ndarray``: keeps the shape, dtype and bytes of its pickle."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def pixels(self) -> NDArray[np.uint8]:
        """The array.

        Raises:
            TypeError, ValueError: not an array of bytes, or their number does not match its shape.
        """
        _, shape, dtype, is_fortran, content = self.state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1":
            raise ValueError("the array is not of uint8")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for ``_codecs.encode``, with which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise DataError(f"refused: encoding {encoding!r} does not belong in a CIFAR file")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # NumPy 1 and Python 2
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # NumPy 2
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text, bytes, and the stand-ins above."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns a stand-in.

        Raises:
            DataError: CIFAR files do not use this name.
        """
        if (module, name) not in _ALLOWED:
            raise DataError(f"refused: it uses {module}.{name}, which does not belong in a CIFAR file")
        return _ALLOWED[module, name]
