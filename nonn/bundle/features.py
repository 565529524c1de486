"""How features travel: a device's answer as float32, as float16, or as one byte a feature.

One byte a feature is an affine code with the bundle's own range for each feature, fitted to training images, so that
nothing but the bytes is sent: a part of 32 filters answers with 32 bytes. Node and aggregator make the same code from
the manifest. What lies outside a range is sent as its end.

Error of one feature: nothing for float32; for float16 half a unit of its eleven bits, 2⁻¹¹ of the value or 2⁻²⁵ where
that is less; for int8 half a step inside the range. NumPy only: a device and the aggregator load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError, InputError

__all__ = ["FEATURE_DTYPES", "FeatureCode"]

FEATURE_DTYPES = ("float32", "float16", "int8")

_STEPS = 255
_MARGIN = 0.05  # share of the range seen that is added at either end: test images reach a little further
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class FeatureCode:
    """The code of one device's features.

    Attributes:
        dtype: ``float32``, ``float16`` or ``int8``.
        scale: int8: the step of each feature [d].
        low: int8: what −128 stands for, of each feature [d].

    Raises:
        ConfigError: an unknown dtype, or steps that are not there, not positive or not as many as ends.
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
                f"int8 features: {len(self.scale)} steps and {len(self.low)} ends, not one each a feature"
            )
        if not np.isfinite([*self.scale, *self.low]).all() or min(self.scale) <= 0:
            raise ConfigError("int8 features: every step must be positive, every end finite")

    @classmethod
    def fit(cls, dtype: str, features: NDArray[Any]) -> Self:
        """The code for features like these.

        Args:
            dtype: that they shall be sent as.
            features: of training images [n, d].
        """
        if dtype != "int8":
            return cls(dtype)
        low, high = (np.asarray(f(axis=0), dtype=np.float64) for f in (features.min, features.max))
        margin = _MARGIN * (high - low)
        # Features after a ReLU are never negative: no step is spent there. A dead feature still needs a step.
        low = np.where(low >= 0, np.maximum(low - margin, 0.0), low - margin)
        scale = np.maximum((high + margin - low) / _STEPS, 1e-6)
        # The very numbers that both ends compute with.
        return cls(dtype, *(tuple(values.astype(np.float32).tolist()) for values in (scale, low)))

    @property
    def wire(self) -> np.dtype[Any]:
        """What is sent, little-endian as the protocol has it."""
        return np.dtype(self.dtype).newbyteorder("<")

    def num_bytes(self, width: int) -> int:
        """Bytes of ``width`` features, without the message around them."""
        return width * self.wire.itemsize

    def encode(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Finite features [B, d] as they are sent [B, d]."""
        if self.dtype == "float32":
            return features
        if self.dtype == "float16":
            return features.clip(-_HALF_MAX, _HALF_MAX).astype(self.wire)
        scale, low = self._affine
        steps: NDArray[Any] = np.rint((features - low) / scale).clip(0, _STEPS) - 128
        return steps.astype(np.int8)

    def decode(self, sent: NDArray[Any]) -> NDArray[np.float32]:
        """What was sent [B, d] as features [B, d], float32.

        Raises:
            InputError: it is of another dtype than the code, or not [B, d].
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
        """What arrives when features [B, d] are sent."""
        return self.decode(self.encode(features))

    @cached_property
    def _affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.array(self.scale, np.float32), np.array(self.low, np.float32)
