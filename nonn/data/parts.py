"""The training and held-out splits of an image data set as files of limited size, to send to a rented machine.

Each image is lossless WebP, a third of the size of its pixels for CIFAR-100. A part contains some training images with
their places in the split, so that all parts together are the split in its order. The test split is never packed.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nonn.data.dataset import Dataset, Split
from nonn.errors import DataError
from nonn.files import atomic_file

__all__ = ["pack", "unpack"]


def pack(data: Dataset, folder: Path, shares: Sequence[float]) -> None:
    """Writes the training and held-out splits as parts.

    Args:
        data: the data set.
        folder: folder of the parts.
        shares: share of the training split in each part; the held-out split is in the first.

    Raises:
        DataError: these are not images with three channels.
    """
    if data.train.inputs.shape[1:2] != (3,):
        raise DataError(f"{data.name}: inputs {list(data.input_shape)}: only images with three channels can be packed")
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(data.train))
    edges = np.round(np.cumsum([0, *shares]) / sum(shares) * len(order)).astype(int)
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        index = np.sort(order[start:end])
        splits = {"train": data.train.take(index)} | ({"held_out": data.held_out} if number == 0 else {})
        arrays: dict[str, Any] = {"index": index, "mean": data.mean, "std": data.std, "classes": np.array(data.classes)}
        for name, split in splits.items():
            with ProcessPoolExecutor() as pool:
                encoded = list(pool.map(_encode, split.inputs, chunksize=256))
            arrays[f"{name}.images"] = np.frombuffer(b"".join(encoded), np.uint8)
            arrays[f"{name}.lengths"] = np.array([len(image) for image in encoded])
            arrays[f"{name}.labels"] = split.labels
        path = folder / f"part-{number}.npz"
        with atomic_file(path) as file, file.open("wb") as target:
            np.savez(target, **arrays)
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {len(index):,} training images", flush=True)


def unpack(paths: Sequence[Path]) -> Dataset:
    """Reads parts; with some of them only, a data set with fewer training samples. The test split is the held-out one.

    Raises:
        DataError: a part cannot be read, or the first one is missing.
    """
    arrays: list[Mapping[str, NDArray[Any]]] = []
    for path in paths:
        try:
            with path.open("rb") as source, np.load(source) as file:
                arrays.append(dict(file))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
            raise DataError(f"{path}: not a readable part ({exc}); send it again") from exc
    first = next((a for a in arrays if "held_out.images" in a), None)
    if first is None:
        raise DataError(f"{', '.join(map(str, paths))}: part-0.npz, which has the held-out split, is missing")
    with ProcessPoolExecutor() as pool:
        parts = [_decoded(a, "train", pool) for a in arrays]
        held_out = _decoded(first, "held_out", pool)
    index = np.argsort(np.concatenate([a["index"] for a in arrays]))
    inputs, labels = (np.concatenate([getattr(p, name) for p in parts])[index] for name in ("inputs", "labels"))
    classes = tuple(map(str, first["classes"]))
    return Dataset("leased", Split(inputs, labels), held_out, held_out, classes, first["mean"], first["std"])


def _decoded(arrays: Mapping[str, NDArray[Any]], name: str, pool: ProcessPoolExecutor) -> Split:
    ends = np.cumsum(arrays[f"{name}.lengths"])
    content = arrays[f"{name}.images"].tobytes()
    encoded = [content[end - length : end] for end, length in zip(ends, arrays[f"{name}.lengths"], strict=True)]
    return Split(np.stack(list(pool.map(_decode, encoded, chunksize=512))), arrays[f"{name}.labels"])


def _encode(image: NDArray[np.uint8]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(target, "WEBP", lossless=True, quality=100, method=4, exact=True)
    return target.getvalue()


def _decode(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
