"""The base class of fusion heads: from the features that arrived to logits, and their storage."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nonn.errors import BundleError, ShapeError
from nonn.reliability.subsets import mask_of, members
from nonn.toml import Registry

__all__ = ["HEADS", "OF_LABELS", "OF_SUMS", "Features", "FloatArray", "Head", "head_from_arrays", "softmax"]

FloatArray = NDArray[np.float64]
Features = Mapping[int, NDArray[Any]]


def softmax(logits: NDArray[Any]) -> FloatArray:
    """Probabilities of logits [B, K]."""
    z = np.asarray(logits, dtype=np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    result: FloatArray = e / e.sum(axis=-1, keepdims=True)
    return result


class Head(ABC):
    """A fusion of the features that arrived.

    Attributes:
        widths: feature width d_i of each device [N].
        num_classes: K.
        temperatures: temperatures of the confidence, for each subset [2^N] or for each number of answering devices
            [N + 1]; None is 1 everywhere.
    """

    temperatures: FloatArray | None = None
    kind: ClassVar[str]
    _heads: ClassVar[dict[str, type[Head]]] = {}

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            Head._heads[cls.kind] = cls

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        self.widths = tuple(int(w) for w in widths)
        self.num_classes = num_classes
        self.offsets = np.concatenate([[0], np.cumsum(self.widths)]).astype(int)

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

    def is_solved(self, mask: int) -> bool:
        """Whether a subset can be fused at once; heads without anything to solve always can."""
        return True

    def solve(self, mask: int) -> None:
        """Computes and keeps what the first fusion of a subset would wait for."""
        self._check(mask)

    def solved(self) -> Sequence[int]:
        """The subsets whose solutions are kept."""
        return ()

    def solved_bytes(self, mask: int) -> int:
        """Size of the solution of a subset, bytes."""
        return 0

    @property
    def cache_bytes(self) -> int:
        """Limit of the solutions that are kept, bytes."""
        return 0

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
        mask, batch = mask_of(devices), len(features[devices[0]])
        self._check(mask)
        for i in devices:
            if features[i].shape != (batch, self.widths[i]):
                raise ShapeError(
                    f"device {i}: features of shape {list(features[i].shape)}, expected {[batch, self.widths[i]]}"
                )
        return self._fuse(mask, [features[i] for i in devices], keep)

    def _check(self, mask: int) -> None:
        """Raises ShapeError if the mask has a device that does not exist."""
        if not 0 <= mask < 1 << self.num_devices:
            raise ShapeError(f"subset {members(mask)}: there are only devices 0 to {self.num_devices - 1}")

    @abstractmethod
    def _fuse(self, mask: int, arrived: Sequence[NDArray[Any]], keep: bool) -> FloatArray:
        """Logits [B, K] of a subset from the features of its devices, in order [B, d_i]."""

    def temperature(self, mask: int) -> float:
        """Divisor of one subset's logits for its confidence; 1 where none was fitted."""
        if self.temperatures is None:
            return 1.0
        by_size = len(self.temperatures) == self.num_devices + 1  # for one device both are the same
        return float(self.temperatures[mask.bit_count() if by_size else mask])

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
        """The same head with other temperatures, one per subset [2^N] or per size [N + 1]; None removes them.

        Raises:
            ShapeError: there are not as many of them, or one is not a positive number.
        """
        if temperatures is not None:
            temperatures = np.asarray(temperatures, dtype=np.float64)
            if temperatures.shape not in ((1 << self.num_devices,), (self.num_devices + 1,)):
                raise ShapeError(
                    f"temperatures of shape {list(temperatures.shape)}, expected {[1 << self.num_devices]}: one for "
                    f"every set of {self.num_devices} devices, or {[self.num_devices + 1]}: one for every size"
                )
            if not (np.isfinite(temperatures).all() and temperatures.min() > 0):
                raise ShapeError("temperatures must be positive numbers")
        other = copy.copy(self)  # solved weights are shared: they do not depend on temperatures
        other.temperatures = temperatures
        return other

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


# How each head that ``fusion.head`` may name is fitted: a function of what ``nonn.distill.fitting`` has of a run.
HEADS: Registry[Callable[[Any], Head]] = Registry(
    "nonn.heads",
    {
        "trained": "nonn.distill.fitting:fit_trained",
        "zero-fill": "nonn.distill.fitting:fit_zero_fill",
        "rescale": "nonn.distill.fitting:fit_rescale",
        "mean-fill": "nonn.distill.fitting:fit_mean_fill",
        "ridge": "nonn.distill.fitting:fit_ridge",
        "logistic": "nonn.distill.fitting:fit_logistic_head",
        "masked": "nonn.distill.fitting:fit_masked_head",
        "precision": "nonn.distill.fitting:fit_precision_head",
    },
)

# What these are fitted to; a head of an installed package may use everything.
OF_SUMS = frozenset({"trained", "zero-fill", "rescale", "mean-fill", "ridge"})  # sums over samples; none is stored
OF_LABELS = frozenset({"logistic", "masked"})  # labels of samples, for all subsets of the devices


def head_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Head:
    """Restores a head from the result of ``to_arrays``.

    A class that nonn does not have is imported if an installed package has an entry point of that kind; a bundle never
    names a module.

    Raises:
        BundleError: the kind is unknown or an array is missing.
    """
    try:
        kind = str(arrays["kind"])
        if kind not in Head._heads:
            HEADS.load_installed(kind)  # importing it registers its class
        cls = Head._heads[kind]
    except KeyError as exc:
        known = ", ".join(Head._heads)
        raise BundleError(
            f"fusion state of unknown kind {exc}; install the package that has it; known: {known}"
        ) from exc
    try:
        return cls._from_arrays(arrays).with_temperatures(arrays.get("temperatures"))
    except KeyError as exc:
        raise BundleError(f"fusion state '{kind}' lacks the array {exc}; build the bundle again") from exc
