"""scikit-learn's handwritten digits: 1797 images of 8×8, ten classes, included in its wheel.

The test split is drawn: the data has no official one.

Source: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits, its test part (Alpaydin and
Kaynak 1998).
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from nonn.config import DataConfig
from nonn.data.dataset import Split
from nonn.data.source import Source
from nonn.data.splits import split_by_share

__all__ = ["read"]


def read(config: DataConfig, seed: int) -> Source:
    """The digits as [n, 1, 8, 8]; grey levels 0 … 16 become 0 … 255."""
    digits = load_digits()
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    data = Split(images, digits.target.astype(np.int64))
    train, test = split_by_share(data, config.test, seed, "digits")
    return Source("digits", train, test, tuple(str(name) for name in digits.target_names))
