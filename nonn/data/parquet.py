"""The layout of the Hugging Face hub: parquet files of encoded images and labels.

The folder or its subfolder ``data`` has ``train*.parquet`` and ``test*.parquet``, as single files or in shards
(``train-00000-of-00004.parquet``). The image column is a struct {bytes, path}; class names come from the schema's
``huggingface`` metadata. 60,000 images of 32×32 take 9 to 14 seconds.

Source: https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from nonn.config import DataConfig
from nonn.data.dataset import Split
from nonn.data.images import decode_all
from nonn.data.source import Source, find, number_classes
from nonn.errors import DataError

__all__ = ["read"]

_LABEL_COLUMNS = ("fine_label", "label")
_IMAGE_COLUMNS = ("img", "image")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})")


@dataclass(frozen=True)
class _Table:
    """One split as stored: encoded images [n], their locations, labels [n], class names if there are any."""

    images: list[bytes | None]
    places: list[tuple[Path, int]]
    labels: NDArray[Any]
    names: list[str] | None

    def load(self, i: int) -> Image.Image:
        """Opens image i."""
        content = self.images[i]
        if content is None:
            raise ValueError("the row has no bytes")
        return Image.open(io.BytesIO(content))

    def describe(self, i: int) -> str:
        """File and row of image i."""
        file, row = self.places[i]
        return f"{file}, row {row}"


def read(config: DataConfig, seed: int) -> Source:
    """Reads both splits; the files fix the test split, so ``seed`` is unused.

    Raises:
        DataError: a file is missing, truncated or without an image or label column, or images cannot be read or differ
            in size.
    """
    folder = find(
        config,
        "a folder with train*.parquet and test*.parquet",
        "download a data set in parquet from https://huggingface.co/datasets, for example uoft-cs/cifar100",
    )
    train, test = (_read_split(_shards(folder, split), config) for split in ("train", "test"))
    (train_labels, test_labels), classes = number_classes([train.labels, test.labels], train.names, str(folder))
    pixels = [decode_all(len(table.images), table.load, table.describe) for table in (train, test)]
    if pixels[0].shape[1] != pixels[1].shape[1]:  # one split has only grey images, the other has not
        pixels = [np.broadcast_to(p, (len(p), 3, *p.shape[2:])).copy() for p in pixels]
    name = folder.resolve().name
    return Source(name, Split(pixels[0], train_labels), Split(pixels[1], test_labels), classes)


def _shards(folder: Path, split: str) -> list[Path]:
    """The files of a split in order.

    Raises:
        DataError: there are no files, or a shard is missing.
    """
    for place in (folder, folder / "data"):
        files = sorted(place.glob(f"{split}*.parquet"))
        if not files:
            continue
        totals = {int(match[1]) for match in map(_SHARD.search, (file.name for file in files)) if match}
        if totals and totals != {len(files)}:
            raise DataError(
                f"{place}: {len(files)} files {split}*.parquet, but their names require "
                f"{' or '.join(map(str, sorted(totals)))} shards; download the missing ones or remove the others"
            )
        return files
    raise DataError(
        f"{folder / (split + '*.parquet')}: no such file, nor in {folder / 'data'}; download it into this folder, "
        "or name another folder with --set data.path=PATH"
    )


def _read_split(files: list[Path], config: DataConfig) -> _Table:
    """Reads the columns of images and labels of all shards.

    Raises:
        DataError: a file is broken, has no image or label column, no row, or a row without label.
    """
    images: list[bytes | None] = []
    places: list[tuple[Path, int]] = []
    labels: list[NDArray[Any]] = []
    names: list[str] | None = None
    for file in files:
        try:
            schema = pq.read_schema(file)
            image, label = _image_column(schema, file), _label_column(schema, config, file)
            table = pq.read_table(file, columns=[image, label])
        except (pa.ArrowException, OSError) as exc:
            raise DataError(f"{file}: truncated, or not a parquet file; download it again ({exc})") from exc
        if not _are_labels(schema.field(label).type):
            raise DataError(f"{file}: column '{label}' of {schema.field(label).type} is not one label per row")
        if table.column(label).null_count:
            raise DataError(f"{file}: column '{label}' has rows without a label")
        for chunk in table.column(image).chunks:
            encoded = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
            images.extend(encoded.to_pylist())
        places.extend((file, row) for row in range(table.num_rows))
        labels.append(np.asarray(table.column(label).to_pylist()))
        names = names or _class_names(schema, label)
    if not images:
        raise DataError(f"{files[0]}: no rows")
    # An empty shard gives float64 labels, so the type is that of the other shards.
    return _Table(images, places, np.concatenate([array for array in labels if array.size]), names)


def _image_column(schema: Any, file: Path) -> str:
    """The column that is a struct with bytes, or a binary one with a usual name."""
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    for field in schema:
        if field.name in _IMAGE_COLUMNS and (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)):
            return str(field.name)
    raise DataError(f"{file}: no column of images (a struct with 'bytes'); columns: {', '.join(schema.names)}")


def _label_column(schema: Any, config: DataConfig, file: Path) -> str:
    """The configured column, or a usual one if none is configured."""
    if config.labels in schema.names:
        return config.labels
    if config.labels == DataConfig().labels:
        for name in _LABEL_COLUMNS:
            if name in schema.names:
                return name
    raise DataError(
        f"{file}: no column '{config.labels}'; columns: {', '.join(schema.names)}; "
        "name that of the labels with --set data.labels=COLUMN"
    )


def _are_labels(kind: Any) -> bool:
    """Whether a column of this type can contain one label per row."""
    types = pa.types
    if types.is_dictionary(kind):
        return _are_labels(kind.value_type)
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _class_names(schema: Any, label: str) -> list[str] | None:
    """Class names from the metadata that the hub's tools write, if present."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (TypeError, KeyError, ValueError):
        return None
