"""The base class of fusion heads: linear in the features that arrived, solved once for each subset of devices."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nonn.errors import BundleError, ShapeError
from nonn.reliability.subsets import mask_of, members

__all__ = ["Features", "FloatArray", "Head", "head_from_arrays", "softmax"]

FloatArray = NDArray[np.float64]
Features = Mapping[int, NDArray[Any]]

# Limit of the solutions that a head keeps: all 255 subsets of eight devices with 64 features and 100 classes fit; with
# 16 devices the last 160.
MAX_SOLVED_BYTES = 64 * 1024 * 1024


def softmax(logits: NDArray[Any]) -> FloatArray:
    """Probabilities of logits [B, K]."""
    z = np.asarray(logits, dtype=np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    result: FloatArray = e / e.sum(axis=-1, keepdims=True)
    return result


class _Solutions:
    """A cache of the most recent solutions, limited in bytes; thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[FloatArray, FloatArray]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def __contains__(self, mask: int) -> bool:
        return mask in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, mask: int) -> tuple[FloatArray, FloatArray] | None:
        with self._lock:
            if mask not in self._kept:
                return None
            self._kept.move_to_end(mask)
            return self._kept[mask]

    def keep(self, mask: int, solution: tuple[FloatArray, FloatArray]) -> None:
        with self._lock:
            if mask in self._kept:
                return
            self._kept[mask] = solution
            self._bytes += sum(array.nbytes for array in solution)
            while self._bytes > MAX_SOLVED_BYTES and len(self._kept) > 1:
                self._bytes -= sum(array.nbytes for array in self._kept.popitem(last=False)[1])


class Head(ABC):
    """A fusion that is linear in the features that arrived.

    Attributes:
        widths: feature width d_i of each device [N].
        num_classes: K.
        temperatures: temperatures of the confidence, for each subset [2^N]; None is 1 everywhere.
    """

    temperatures: FloatArray | None = None
    kind: ClassVar[str]
    _heads: ClassVar[dict[str, type[Head]]] = {}

    def __init_subclass__(cls) -> None:
        Head._heads[cls.kind] = cls

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        self.widths = tuple(int(w) for w in widths)
        self.num_classes = num_classes
        self.offsets = np.concatenate([[0], np.cumsum(self.widths)]).astype(int)
        self._solved = _Solutions()

    @property
    def num_devices(self) -> int:
        """N."""
        return len(self.widths)

    def rows(self, mask: int) -> NDArray[np.int64]:
        """Indices into the concatenated features of all devices that belong to a mask [D_S]."""
        return np.concatenate(
            [np.arange(self.offsets[i], self.offsets[i + 1], dtype=np.int64) for i in members(mask)]
            or [np.empty(0, np.int64)]
        )

    def weights(self, mask: int, *, keep: bool = True) -> tuple[FloatArray, FloatArray]:
        """The linear map of one subset, solved once and kept in a cache of 64 MiB.

        Args:
            mask: the devices that answered.
            keep: cache a new solution; off for callers that visit each of 2^N subsets once (gigabytes at N = 16).

        Returns:
            W_S [D_S, K], rows in device order, and b_S [K].

        Raises:
            ShapeError: the mask has a device that does not exist.
        """
        if not 0 <= mask < 1 << self.num_devices:
            raise ShapeError(f"subset {members(mask)}: there are only devices 0 to {self.num_devices - 1}")
        solved = self._solved.get(mask)
        if solved is None:
            # No lock, so that requests for other subsets do not wait. Two threads may solve the same subset at once.
            solved = self._solve(mask)
            if keep:
                self._solved.keep(mask, solved)
        return solved

    def is_solved(self, mask: int) -> bool:
        """Whether the weights of a subset are cached."""
        return mask in self._solved

    def logits(self, features: Features, *, keep: bool = True) -> FloatArray:
        """Fuses the features that arrived.

        Args:
            features: device number → its features [B, d_i]; absent devices are left out.
            keep: cache the weights of this subset.

        Returns:
            Fused logits [B, K].

        Raises:
            ShapeError: no device answered, a device is unknown, or a width or batch size is wrong.
        """
        devices = sorted(features)
        if not devices:
            raise ShapeError("no device answered: there is nothing to fuse")
        weight, bias = self.weights(mask_of(devices), keep=keep)
        batch = len(features[devices[0]])
        for i in devices:
            if features[i].shape != (batch, self.widths[i]):
                raise ShapeError(
                    f"device {i}: features of shape {list(features[i].shape)}, expected {[batch, self.widths[i]]}"
                )
        arrived = np.concatenate([features[i] for i in devices], axis=1, dtype=np.float64)
        result: FloatArray = arrived @ weight + bias
        return result

    def temperature(self, mask: int) -> float:
        """Divisor of one subset's logits for its confidence; 1 where none was fitted."""
        return 1.0 if self.temperatures is None else float(self.temperatures[mask])

    def probabilities(self, logits: NDArray[Any], mask: int) -> FloatArray:
        """Calibrated probabilities of fused logits; the most probable class is that of the largest logit.

        Args:
            logits: logits of this head [B, K].
            mask: the devices that answered.

        Returns:
            [B, K].
        """
        return softmax(np.asarray(logits, dtype=np.float64) / self.temperature(mask))

    def confidence(self, logits: NDArray[Any], mask: int) -> FloatArray:
        """Calibrated probability of the most probable class [B]; the same as the largest of ``probabilities``."""
        exponents = (logits - logits.max(axis=1, keepdims=True)) / self.temperature(mask)
        result: FloatArray = 1.0 / np.exp(exponents).sum(axis=1)
        return result

    def with_temperatures(self, temperatures: NDArray[Any] | None) -> Self:
        """The same head with other temperatures, one per subset [2^N]; None removes them.

        Raises:
            ShapeError: there are not 2^N of them, or one is not a positive number.
        """
        if temperatures is not None:
            temperatures = np.asarray(temperatures, dtype=np.float64)
            if temperatures.shape != (1 << self.num_devices,):
                raise ShapeError(
                    f"temperatures of shape {list(temperatures.shape)}, expected {[1 << self.num_devices]}: one for "
                    f"every set of {self.num_devices} devices"
                )
            if not (np.isfinite(temperatures).all() and temperatures.min() > 0):
                raise ShapeError("temperatures must be positive numbers")
        other = copy.copy(self)  # solved weights are shared: they do not depend on temperatures
        other.temperatures = temperatures
        return other

    @abstractmethod
    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        """W_S [D_S, K] and b_S [K] of one subset."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays from which ``head_from_arrays`` restores this head."""
        arrays = {"kind": np.array(self.kind), "widths": np.array(self.widths), **self._arrays()}
        return arrays if self.temperatures is None else arrays | {"temperatures": self.temperatures}

    @abstractmethod
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The state of this kind of head."""

    @classmethod
    @abstractmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Head:
        """The inverse of ``to_arrays``."""


def head_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Head:
    """Restores a head from the result of ``to_arrays``.

    Raises:
        BundleError: the kind is unknown or an array is missing.
    """
    try:
        kind = str(arrays["kind"])
        cls = Head._heads[kind]
    except KeyError as exc:
        raise BundleError(f"fusion state of unknown kind {exc}; known: {', '.join(Head._heads)}") from exc
    try:
        return cls._from_arrays(arrays).with_temperatures(arrays.get("temperatures"))
    except KeyError as exc:
        raise BundleError(f"fusion state '{kind}' lacks the array {exc}; build the bundle again") from exc
