"""A data set: three splits in memory, class names, and the statistics of the training split.

Images stay uint8: 60,000 of 32×32 are 184 MB, a quarter of float32. Batches are indexed and augmented in memory; a
worker-based loader is slower than training itself at this size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.preprocess import Preprocess
from nonn.errors import DataError

__all__ = ["Dataset", "Split"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and their labels.

    Attributes:
        inputs: images [n, C, H, W] of uint8, or sensor windows [n, C, T] of float32; values as recorded.
        labels: class numbers [n] of int64.
        places: number of the recording and place of the window in it [n, 2]; None where the data have no order.

    Raises:
        DataError: shape or dtype is neither of the two, lengths differ, a value is not finite or a label negative.
    """

    inputs: NDArray[Any]
    labels: IntArray
    places: IntArray | None = None

    def __post_init__(self) -> None:
        kind = (self.inputs.dtype.name, self.inputs.ndim)
        if kind not in (("uint8", 4), ("float32", 3)):
            raise DataError(
                f"inputs {list(self.inputs.shape)} of {kind[0]}: they must be images [n, channels, height, width] "
                "of uint8 or sensor windows [n, channels, time] of float32"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.inputs.shape[:1]:
            raise DataError(
                f"labels {list(self.labels.shape)} of {self.labels.dtype.name}: "
                f"{len(self.inputs)} inputs need as many labels of int64"
            )
        if 0 in self.inputs.shape:
            raise DataError(f"inputs {list(self.inputs.shape)}: the split is empty")
        if self.labels.min() < 0:
            raise DataError(f"label {self.labels.min()}: classes are counted from 0")
        if self.places is not None and self.places.shape != (len(self.labels), 2):
            raise DataError(f"places {list(self.places.shape)}: {len(self.labels)} windows need [n, 2]")
        if self.inputs.dtype == np.float32:
            finite = np.isfinite(self.inputs).all(axis=(1, 2))
            if not finite.all():
                raise DataError(f"input {int(finite.argmin())}: contains NaN or infinity")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: IntArray) -> Split:
        """A copy of the samples at these indices [k]."""
        return Split(self.inputs[index], self.labels[index], None if self.places is None else self.places[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with fixed splits.

    Attributes:
        name: name in reports.
        train: the split that networks are fitted to.
        held_out: a share of the training data for model selection; disjoint from ``train``.
        test: the split for the report only; no statistics are computed from it.
        classes: class names [K].
        mean: per channel of ``train`` [C], in units of the raw inputs.
        std: per channel of ``train`` [C]; 1 for a constant channel, so that dividing by it leaves zeros.
        preprocess: how files became inputs.

    Raises:
        DataError: splits differ in input shape or dtype, or a label has no class name.
    """

    name: str
    train: Split
    held_out: Split
    test: Split
    classes: tuple[str, ...]
    mean: FloatArray
    std: FloatArray
    preprocess: Preprocess = Preprocess()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        for title in ("held_out", "test"):
            other = getattr(self, title).inputs
            if other.shape[1:] != self.input_shape or other.dtype != self.train.inputs.dtype:
                raise DataError(
                    f"{self.name}: {title} inputs are {list(other.shape[1:])} of {other.dtype.name}, "
                    f"train inputs {list(self.input_shape)} of {self.dtype}"
                )
        top = max(int(split.labels.max()) for split in (self.train, self.held_out, self.test))
        if top >= len(self.classes):
            raise DataError(f"{self.name}: label {top}, but only {len(self.classes)} classes")

    @classmethod
    def of(
        cls,
        name: str,
        train: Split,
        held_out: Split,
        test: Split,
        classes: tuple[str, ...],
        preprocess: Preprocess = Preprocess(),  # noqa: B008  (frozen)
    ) -> Dataset:
        """A data set with mean and standard deviation computed from ``train``.

        Raises:
            DataError: see the class.
        """
        mean, std = channel_statistics(train.inputs)
        return cls(name, train, held_out, test, classes, mean, std, preprocess)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W) or (C, T)."""
        return self.train.inputs.shape[1:]

    @property
    def num_classes(self) -> int:
        """K, including classes without a sample."""
        return len(self.classes)

    @property
    def dtype(self) -> str:
        """Name of the dtype of inputs: "uint8" or "float32"."""
        return self.train.inputs.dtype.name

    def fingerprint(self) -> str:
        """SHA-256 of inputs, labels and classes of all splits as lower-case hex; 60,000 small images take 0.2 s."""
        sha = hashlib.sha256()
        for split in (self.train, self.held_out, self.test):
            for array in (split.inputs, split.labels):
                # The header distinguishes a [2, 3] array from a [3, 2] one with the same bytes.
                sha.update(f"{array.dtype.str}{array.shape};".encode())
                sha.update(np.ascontiguousarray(array).data)
        # Number and lengths of the class names are hashed too: a name may contain any character.
        for text in (str(len(self.classes)), *self.classes):
            encoded = text.encode()
            sha.update(f"{len(encoded)}:".encode() + encoded)
        return sha.hexdigest()


def channel_statistics(inputs: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each channel over samples and positions, accumulated in float64.

    Args:
        inputs: images [n, C, H, W] of uint8 or windows [n, C, T] of float32.

    Returns:
        Mean [C] and standard deviation [C], the latter 1 where a channel is constant.
    """
    num_channels = inputs.shape[1]
    mean, std = np.empty(num_channels), np.empty(num_channels)
    # One channel at a time: a float64 copy of all images would take eight times their memory.
    for c in range(num_channels):
        channel = inputs[:, c]
        if channel.dtype == np.uint8:
            values = np.arange(256.0)
            share = np.bincount(channel.ravel(), minlength=256) / channel.size
            mean[c] = share @ values
            std[c] = np.sqrt(share @ (values - mean[c]) ** 2)
        else:
            wide = channel.astype(np.float64)
            mean[c], std[c] = wide.mean(), wide.std()
    narrow = std.astype(np.float32)
    # Sums of equal float32 values are exact in float64, so a constant channel gives exactly 0.
    narrow[narrow == 0] = 1
    return mean.astype(np.float32), narrow
