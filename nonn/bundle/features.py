"""Encoding of features for the network: float32, float16 or int8 (one byte per feature).

int8 is an affine code. The bundle's manifest has the range of each feature, fitted to training images, so only the
bytes are sent: a part of 32 filters answers with 32 bytes. Node and aggregator build the same code from the manifest.
Values outside the range are clipped.

Error of one feature: zero for float32; for float16 half a unit of its eleven bits, 2⁻¹¹ of the value, or 2⁻²⁵ for small
values; for int8 half a step inside the range. Needs NumPy only, since devices and the aggregator load it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError, InputError

__all__ = ["FEATURE_DTYPES", "FeatureCode"]

FEATURE_DTYPES = ("float32", "float16", "int8")

_STEPS = 255
_MARGIN = 0.05  # share of the range of training images added at each end: test images exceed it a little
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class FeatureCode:
    """The code of one device's features.

    Attributes:
        dtype: ``float32``, ``float16`` or ``int8``.
        scale: int8: the step of each feature [d].
        low: int8: the value that −128 encodes, for each feature [d].

    Raises:
        ConfigError: the dtype is unknown; steps are missing or not positive; the numbers of steps and lower ends
            differ; or one of them is not finite.
    """

    dtype: str = "float32"
    scale: tuple[float, ...] = ()
    low: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in FEATURE_DTYPES:
            raise ConfigError(f"features of dtype '{self.dtype}' are unknown; choose {', '.join(FEATURE_DTYPES)}")
        if self.dtype != "int8":
            return
        if not self.scale or len(self.scale) != len(self.low):
            raise ConfigError(
                f"int8 features: {len(self.scale)} steps and {len(self.low)} lower ends; each feature needs one of both"
            )
        if not np.isfinite([*self.scale, *self.low]).all() or min(self.scale) <= 0:
            raise ConfigError("int8 features: every step must be positive, every lower end finite")

    @classmethod
    def fit(cls, dtype: str, features: NDArray[Any]) -> Self:
        """Fits a code to features.

        Args:
            dtype: of the code.
            features: of training images [n, d].
        """
        if dtype != "int8":
            return cls(dtype)
        low, high = (np.asarray(f(axis=0), dtype=np.float64) for f in (features.min, features.max))
        margin = _MARGIN * (high - low)
        # Features after a ReLU are never negative, so the range does not go below 0. A dead feature still needs a step.
        low = np.where(low >= 0, np.maximum(low - margin, 0.0), low - margin)
        scale = np.maximum((high + margin - low) / _STEPS, 1e-6)
        # Exactly the numbers that both ends compute with.
        return cls(dtype, *(tuple(values.astype(np.float32).tolist()) for values in (scale, low)))

    @property
    def wire(self) -> np.dtype[Any]:
        """Dtype on the wire, little-endian as in the protocol."""
        return np.dtype(self.dtype).newbyteorder("<")

    def num_bytes(self, width: int) -> int:
        """Bytes of ``width`` features, without message headers."""
        return width * self.wire.itemsize

    @property
    def fingerprint(self) -> str:
        """SHA-256 of steps and lower ends as hex; for ends that do not share the manifest."""
        return hashlib.sha256(np.array([self.scale, self.low], "<f4").tobytes()).hexdigest()

    def encode(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Encodes finite features [B, d] → [B, d]."""
        if self.dtype == "float32":
            return features
        if self.dtype == "float16":
            return features.clip(-_HALF_MAX, _HALF_MAX).astype(self.wire)
        scale, low = self._affine
        steps: NDArray[Any] = np.rint((features - low) / scale).clip(0, _STEPS) - 128
        return steps.astype(np.int8)

    def decode(self, sent: NDArray[Any]) -> NDArray[np.float32]:
        """Decodes features [B, d] → [B, d], float32.

        Raises:
            InputError: the dtype is not that of the code, or the shape is not [B, d].
        """
        width = len(self.scale) if self.dtype == "int8" else None
        if sent.dtype != self.wire or sent.ndim != 2 or width not in (None, sent.shape[1]):
            expected = f"{self.dtype} [B, {'d' if width is None else width}]"
            raise InputError(f"{sent.dtype} features {list(sent.shape)}, expected {expected}")
        if self.dtype != "int8":
            return sent.astype(np.float32, copy=False)
        scale, low = self._affine
        return (sent.astype(np.float32) + np.float32(128)) * scale + low

    def roundtrip(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [B, d] after encoding and decoding."""
        return self.decode(self.encode(features))

    @cached_property
    def _affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.array(self.scale, np.float32), np.array(self.low, np.float32)
