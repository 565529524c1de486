"""Preprocessing of files, as the reader of the training data did it.

It is recorded in the manifest's ``input``. ``nonn.bundle.inputs`` applies it in training and in serving, so that a
bundle accepts the files that it was trained on. A bundle without a record accepts images of exactly its size. Nodes
receive arrays and do not need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Preprocess", "recorded"]


@dataclass(frozen=True)
class Preprocess:
    """From a file to the raw input of the networks; their first layer normalises it.

    Attributes:
        orientation: ``exif`` rotates photographs by their EXIF orientation; ``stored`` does not.
        crop: ``centre`` cuts the largest centre rectangle that has the proportions of the input; ``none`` does not.
        resize: ``bicubic`` scales to the size of the input; ``none`` requires that size.
        channels: ``L`` (grey) or ``RGB``; empty is what suits the input.
        array: arrays: name in ``.npz`` files.
        scale: arrays: each channel of the array of that name is multiplied by this [C]; empty is 1.
    """

    orientation: str = "stored"
    crop: str = "none"
    resize: str = "none"
    channels: str = ""
    array: str = ""
    scale: tuple[float, ...] = ()

    @property
    def sized(self) -> bool:
        """Whether images of any size are accepted."""
        return not self.crop == self.resize == "none"

    def resizing(self) -> Preprocess:
        """The same for images of any size, even if the training took only those of one size."""
        return self if self.sized else replace(self, crop="centre", resize="bicubic")


def recorded(values: Mapping[str, Any] | None, provenance: Any) -> Preprocess:
    """The record of a manifest.

    Args:
        values: its ``input.preprocess``; None in bundles that were written without one.
        provenance: its provenance. Without a record, the steps follow from the reader that it names.
    """
    if values is not None:
        known = {name: values[name] for name in Preprocess.__dataclass_fields__ if name in values}
        return Preprocess(**known | {"scale": tuple(map(float, known.get("scale", ())))})
    config = provenance.get("config") if isinstance(provenance, Mapping) else None
    data = config.get("data") if isinstance(config, Mapping) else None
    if isinstance(data, Mapping) and data.get("reader") == "imagefolder":
        return Preprocess(orientation="exif", crop="centre", resize="bicubic", channels="RGB")
    return Preprocess()
