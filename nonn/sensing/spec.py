"""What a unit measures: channels, units, rate, window and hop, or the pictures of a camera; and the limits of training.

It is part of the bundle's manifest. ``low``, ``high`` and ``quiet`` are measured on the training split; with them a
node recognises a window that no working sensor would have produced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError

__all__ = ["SensingSpec", "to_unit"]

# Factor to the first unit of each line, which IIO uses; spellings of one unit are equal.
_UNITS = (
    {"m/s2": 1.0, "m/s^2": 1.0, "m/s²": 1.0, "g": 9.80665, "mg": 9.80665e-3},
    {"rad/s": 1.0, "deg/s": np.pi / 180, "dps": np.pi / 180, "°/s": np.pi / 180},
    {"gauss": 1.0, "ut": 0.01, "µt": 0.01, "mt": 10.0, "t": 1e4},
    {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
)


def to_unit(given: str, wanted: str, what: str) -> float:
    """Factor from one unit to another.

    Args:
        given: unit of the values; empty if unknown, which is taken as ``wanted``.
        wanted: unit of the bundle; empty accepts any.
        what: name of the channel, for the error.

    Raises:
        ConfigError: the units are of different quantities, or unknown.
    """
    first, second = given.strip().lower(), wanted.strip().lower()
    if not first or not second or first == second:
        return 1.0
    for units in _UNITS:
        if first in units and second in units:
            return float(units[first] / units[second])
    raise ConfigError(f"{what}: values in '{given}' cannot be converted to '{wanted}', the unit of the bundle")


@dataclass(frozen=True)
class SensingSpec:
    """The channels of a sensor and the windows, or the pictures, that a student reads.

    Attributes:
        rate_hz: samples of each channel, or pictures, per second.
        samples: samples T of one window; 1 for pictures.
        hop_s: time between the ends of two windows.
        channels: name of each channel [C].
        units: unit of each channel [C]; empty if it does not matter.
        scale: factor from that unit to the input of the student [C].
        low: smallest input of the training windows [C]; empty if unknown.
        high: largest input of the training windows [C].
        quiet: smallest difference of maximum and minimum in one training window, or of the standard deviation over the
            pixels of one training picture [C].
        frame: height and width of a camera's picture, before the crop and resolution of its device; empty for windows.
        tolerance_s: a picture may be this far from its instant; 0 for windows.
    """

    rate_hz: float
    samples: int
    hop_s: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    quiet: tuple[float, ...] = ()
    frame: tuple[int, ...] = ()
    tolerance_s: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.rate_hz < 1e6 and self.samples >= (1 if self.frame else 2) and 0 < self.hop_s < 1e6):
            raise ConfigError(
                f"sensing: rate_hz {self.rate_hz}, {self.samples} samples, hop_s {self.hop_s}; all must be positive"
            )
        if self.frame and not 0 < self.tolerance_s <= self.hop_s / 2:
            raise ConfigError(
                f"sensing.tolerance_s: {self.tolerance_s:g} s; must be above 0 and at most half of the hop, "
                f"{self.hop_s / 2:g} s"
            )
        for name in ("units", "scale", "low", "high", "quiet"):
            values = getattr(self, name)
            if len(values) != len(self.channels) and (values or name in ("units", "scale")):
                raise ConfigError(f"sensing: {len(values)} values of {name} for {len(self.channels)} channels")

    @property
    def window_s(self) -> float:
        """Duration of one window in seconds."""
        return self.samples / self.rate_hz

    @property
    def raw_bytes(self) -> int:
        """Bytes of one raw window in float32, or of one picture, for comparison."""
        return math.prod((*self.frame, len(self.channels), 1 if self.frame else 4 * self.samples))

    def of_view(self, view: Sequence[int]) -> Self:
        """The channels of one device, in the order of its view; an empty view is all of them."""
        if not view:
            return self
        picked: dict[str, Any] = {
            name: tuple(getattr(self, name)[c] for c in view)
            for name in ("channels", "units", "scale", "low", "high", "quiet")
            if getattr(self, name)
        }
        return replace(self, **picked)

    def measured(self, windows: NDArray[Any]) -> Self:
        """The same with the limits of training windows [n, C, T] or pictures [n, C, H, W]."""
        if self.frame:
            contrast = [windows[:, c].std(axis=(1, 2), dtype=np.float32).min() for c in range(windows.shape[1])]
            return replace(self, quiet=_floats(np.array(contrast)))
        spread = windows.max(axis=2) - windows.min(axis=2)
        low, high, quiet = windows.min(axis=(0, 2)), windows.max(axis=(0, 2)), spread.min(axis=0)
        return replace(self, low=_floats(low), high=_floats(high), quiet=_floats(quiet))


def _floats(values: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(map(float, values))
