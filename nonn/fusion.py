"""Fusion: from the features of the devices that answered to logits, for any answering set S.

Every head here is linear in the features that arrived: ``z_S = concat(f_i, i in S) · W_S + b_S``. Heads differ only
in how W_S depends on S:

- ``ZeroFill``: one fully connected layer; an absent device counts as zeros (NoNN, Bhardwaj et al. 2019).
- ``Rescale``: the same, and what arrived is scaled by N/|S|, as dropout does.
- ``MeanFill``: the same, and an absent device counts as the mean of its features, which folds into the bias.
- ``ReplicaAverage``: devices that learned the same part are averaged over those that arrived, then one fully
  connected layer over the parts (Jeong, Park, Yang 2021).
- ``RidgePerSet``: a head of its own for every answering set, solved on demand from one Gram matrix that was fitted
  to the teacher's logits. Reduced models per missing pattern beat imputation (Saar-Tsechansky & Provost 2007).
- ``LogisticPerSet``: a multinomial logistic regression for every answering set, solved when it was fitted and stored;
  sets for which there was no room have their ridge.

A head may carry a temperature for every answering set. It divides the logits for the confidence alone: the logits
themselves, and with them every answer and every accuracy table, stay as they are (``nonn.calibration``).

NumPy only, in float64: the aggregator and the simulator fuse with the same lines, one request at a time or ten
thousand at once, with the same result to the last printed digit.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nonn.errors import BundleError, ShapeError
from nonn.subsets import SubsetTable, mask_of, members

__all__ = [
    "Head",
    "LogisticPerSet",
    "MeanFill",
    "ReplicaAverage",
    "Rescale",
    "RidgePerSet",
    "ZeroFill",
    "enumerate_subsets",
    "gram",
    "head_from_arrays",
    "softmax",
]

FloatArray = NDArray[np.float64]
Features = Mapping[int, NDArray[Any]]


def softmax(logits: NDArray[Any]) -> FloatArray:
    """Probabilities of logits [B, K]."""
    z = np.asarray(logits, dtype=np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    result: FloatArray = e / e.sum(axis=-1, keepdims=True)
    return result


class Head(ABC):
    """A fusion that is linear in the features that arrived.

    Attributes:
        widths: feature width d_i of each device [N].
        num_classes: K.
        temperatures: of the confidence, for each answering set [2^N]; None is 1 everywhere.
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
        self._solved: dict[int, tuple[FloatArray, FloatArray]] = {}
        self._lock = threading.Lock()

    @property
    def num_devices(self) -> int:
        """N."""
        return len(self.widths)

    def rows(self, mask: int) -> NDArray[np.int64]:
        """Indices into the concatenated features of all devices that a mask keeps [D_S]."""
        return np.concatenate(
            [np.arange(self.offsets[i], self.offsets[i + 1], dtype=np.int64) for i in members(mask)]
            or [np.empty(0, np.int64)]
        )

    def weights(self, mask: int, *, keep: bool = True) -> tuple[FloatArray, FloatArray]:
        """The linear map of one answering set, solved once and kept.

        Args:
            mask: the devices that answered.
            keep: remember a new solution; off for who visits each of 2^N sets once (gigabytes at N = 16).

        Returns:
            W_S [D_S, K], rows in device order, and b_S [K].

        Raises:
            ShapeError: the mask names a device that does not exist.
        """
        if not 0 <= mask < 1 << self.num_devices:
            raise ShapeError(f"answering set {members(mask)}: there are only devices 0 to {self.num_devices - 1}")
        solved = self._solved.get(mask)
        if solved is None and not keep:
            return self._solve(mask)
        if solved is None:
            with self._lock:
                solved = self._solved.setdefault(mask, self._solve(mask))
        return solved

    def logits(self, features: Features, *, keep: bool = True) -> FloatArray:
        """Fuses what arrived.

        Args:
            features: device number → its features [B, d_i]; absent devices are left out.
            keep: remember the weights of this answering set.

        Returns:
            Fused logits [B, K].

        Raises:
            ShapeError: nobody answered, a device is unknown, or a width or batch size is wrong.
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
        arrived = np.concatenate([np.asarray(features[i], dtype=np.float64) for i in devices], axis=1)
        result: FloatArray = arrived @ weight + bias
        return result

    def temperature(self, mask: int) -> float:
        """What the logits of one answering set are divided by for its confidence; 1 where none was fitted."""
        return 1.0 if self.temperatures is None else float(self.temperatures[mask])

    def probabilities(self, logits: NDArray[Any], mask: int) -> FloatArray:
        """Calibrated probabilities of fused logits; the most probable class is that of the largest logit.

        Args:
            logits: of this head [B, K].
            mask: the devices that answered.

        Returns:
            [B, K].
        """
        return softmax(np.asarray(logits, dtype=np.float64) / self.temperature(mask))

    def with_temperatures(self, temperatures: NDArray[Any] | None) -> Self:
        """The same head with other temperatures, one an answering set [2^N]; None takes them away.

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
        """W_S [D_S, K] and b_S [K] of one answering set."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All that ``head_from_arrays`` needs to make this head again."""
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
    """Makes a head from its ``to_arrays``.

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


class ZeroFill(Head):
    """One fully connected layer over all devices' features; an absent device counts as zeros.

    Args:
        weight: [D, K], rows in device order.
        bias: [K].
        widths: d_i of each device [N].

    Source: Bhardwaj et al. 2019, arXiv 1907.11804.
    """

    kind = "zero-fill"

    def __init__(self, weight: NDArray[Any], bias: NDArray[Any], widths: Sequence[int]) -> None:
        super().__init__(widths, weight.shape[1])
        self.weight, self.bias = weight.astype(np.float64), bias.astype(np.float64)
        if len(weight) != self.offsets[-1]:
            raise ShapeError(f"weight of {len(weight)} rows for widths {self.widths}, which sum to {self.offsets[-1]}")

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        return self.weight[self.rows(mask)], self.bias

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ZeroFill:
        return cls(arrays["weight"], arrays["bias"], arrays["widths"].tolist())


class Rescale(ZeroFill):
    """Zero-fill whose additive part is scaled by N/|S|, so that it keeps its size: ``z_S = b + N/|S| Σ f_i W_i``.

    Source: the scaling of dropout (Srivastava et al. 2014), for whole devices.
    """

    kind = "rescale"

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        return self.weight[self.rows(mask)] * (self.num_devices / max(len(members(mask)), 1)), self.bias


class MeanFill(ZeroFill):
    """One fully connected layer; an absent device counts as the mean of its features.

    Args:
        weight: [D, K], rows in device order.
        bias: [K].
        widths: d_i of each device [N].
        mean: of each feature over the training split [D].

    Raises:
        ShapeError: the arrays do not fit each other.
    """

    kind = "mean-fill"

    def __init__(self, weight: NDArray[Any], bias: NDArray[Any], widths: Sequence[int], mean: NDArray[Any]) -> None:
        super().__init__(weight, bias, widths)
        self.mean = mean.astype(np.float64)
        if self.mean.shape != (len(weight),):
            raise ShapeError(f"mean of shape {list(mean.shape)} for a weight of {len(weight)} rows")

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        absent = np.ones(len(self.weight), dtype=bool)
        absent[self.rows(mask)] = False
        return self.weight[~absent], self.bias + self.mean[absent] @ self.weight[absent]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return super()._arrays() | {"mean": self.mean}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> MeanFill:
        return cls(arrays["weight"], arrays["bias"], arrays["widths"].tolist(), arrays["mean"])


class ReplicaAverage(Head):
    """Averages the devices that learned the same part over those that arrived, then one fully connected layer.

    A part none of whose devices arrived counts as zeros.

    Args:
        weight: [Σ_j width of part j, K], rows in part order.
        bias: [K].
        widths: d_i of each device [N]; equal for devices of one part.
        parts: part of each device [N]; parts are 0 … M − 1.

    Source: Jeong, Park, Yang 2021, Electronics 10(14), 1614.
    """

    kind = "replica-average"

    def __init__(self, weight: NDArray[Any], bias: NDArray[Any], widths: Sequence[int], parts: Sequence[int]) -> None:
        super().__init__(widths, weight.shape[1])
        self.weight, self.bias = weight.astype(np.float64), bias.astype(np.float64)
        self.parts = tuple(int(p) for p in parts)
        part_width: dict[int, int] = {}
        for i, (part, width) in enumerate(zip(self.parts, self.widths, strict=True)):
            if part_width.setdefault(part, width) != width:
                raise ShapeError(f"device {i}: width {width}, but part {part} has width {part_width[part]}")
        if sorted(part_width) != list(range(len(part_width))) or sum(part_width.values()) != len(weight):
            raise ShapeError(f"weight of {len(weight)} rows does not fit parts of widths {part_width}")
        ends = np.cumsum([part_width[j] for j in range(len(part_width))])
        self._blocks = [slice(end - part_width[j], end) for j, end in enumerate(ends)]

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        arrived = members(mask)
        replicas = {j: sum(self.parts[i] == j for i in arrived) for j in set(self.parts)}
        blocks = [self.weight[self._blocks[self.parts[i]]] / replicas[self.parts[i]] for i in arrived]
        empty = np.empty((0, self.num_classes))
        return np.concatenate(blocks) if blocks else empty, self.bias

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"weight": self.weight, "bias": self.bias, "parts": np.array(self.parts)}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ReplicaAverage:
        return cls(arrays["weight"], arrays["bias"], arrays["widths"].tolist(), arrays["parts"].tolist())


def gram(features: NDArray[Any], targets: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Sums that a ridge head is solved from; add those of several batches together.

    Args:
        features: concatenated features of all devices φ [B, D].
        targets: the teacher's logits y [B, K].

    Returns:
        G = Σ [φ 1]ᵀ[φ 1] of shape [D + 1, D + 1] and C = Σ [φ 1]ᵀ y of shape [D + 1, K].
    """
    phi = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)
    return phi.T @ phi, phi.T @ np.asarray(targets, dtype=np.float64)


class RidgePerSet(Head):
    """A ridge regression to the teacher's logits for every answering set, from one Gram matrix.

    ``W_S = (Σ_SS + λ s I)⁻¹ Σ_Sy`` with Σ the covariance in the Gram matrix and s its mean variance, so that λ has no
    unit; the intercept is not shrunk. Fitting to one-hot labels instead loses accuracy even with every device present.

    Args:
        gram_matrix: G [D + 1, D + 1], the last row and column belong to the constant 1.
        cross: C [D + 1, K].
        ridge: λ.
        widths: d_i of each device [N].

    Attributes:
        mean: of each feature over the samples that were summed [D].

    Raises:
        ShapeError: the arrays do not fit each other.
    """

    kind = "ridge"

    def __init__(self, gram_matrix: NDArray[Any], cross: NDArray[Any], ridge: float, widths: Sequence[int]) -> None:
        super().__init__(widths, cross.shape[1])
        side = int(self.offsets[-1]) + 1
        if gram_matrix.shape != (side, side) or len(cross) != side:
            raise ShapeError(
                f"Gram matrix {list(gram_matrix.shape)} and cross {list(cross.shape)} for widths {self.widths}: "
                f"both need {side} rows"
            )
        self.gram_matrix, self.cross = gram_matrix.astype(np.float64), cross.astype(np.float64)
        self.ridge = float(ridge)
        count = self.gram_matrix[-1, -1]
        self.mean = self.gram_matrix[-1, :-1] / count
        self._target_mean = self.cross[-1] / count
        self._covariance = self.gram_matrix[:-1, :-1] / count - np.outer(self.mean, self.mean)
        self._target_covariance = self.cross[:-1] / count - np.outer(self.mean, self._target_mean)
        # A floor keeps a set of dead devices solvable: it then answers with the mean of the teacher's logits.
        self._shrink = self.ridge * max(float(np.trace(self._covariance)) / max(side - 1, 1), 1e-12)

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        rows = self.rows(mask)
        covariance = self._covariance[np.ix_(rows, rows)] + self._shrink * np.eye(len(rows))
        weight: FloatArray = np.linalg.solve(covariance, self._target_covariance[rows])
        return weight, self._target_mean - self.mean[rows] @ weight

    def normal_equations(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """What every set's head is solved from.

        Returns:
            Σ + λ s I [D, D], Σ_y [D, K], the mean of the features [D] and of the teacher's logits [K].
        """
        shrunk = self._covariance + self._shrink * np.eye(len(self._covariance))
        return shrunk, self._target_covariance, self.mean, self._target_mean

    def with_ridge(self, ridge: float) -> RidgePerSet:
        """The same sums with another λ."""
        return RidgePerSet(self.gram_matrix, self.cross, ridge, self.widths)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"gram": self.gram_matrix, "cross": self.cross, "ridge": np.array(self.ridge)}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> RidgePerSet:
        return cls(arrays["gram"], arrays["cross"], float(arrays["ridge"]), arrays["widths"].tolist())


class LogisticPerSet(Head):
    """A multinomial logistic regression for as many answering sets as were solved; the ridge for all others.

    The aggregator has NumPy alone and no training features, so nothing is solved on demand: ``pack`` stores solutions
    as float16 with a scale for each set, 2 bytes a weight. Eight devices of 32 features and 100 classes take 6.6 MB
    for all 255 sets. A head computes with the stored precision, so it gives the same logits before storage and after.

    Args:
        ridge: answers for the sets that are not stored.
        masks: the stored sets, ascending [m].
        weights: of the stored sets one after the other, each [D_S · K], divided by its scale; float16 [Σ D_S · K].
        scales: [m], float32.
        centres: logits at the mean of the features, float32 [m, K]. A bias would hold the features' offset times
            weights that are rounded, and that product is often larger than the logits.

    Raises:
        ShapeError: the arrays do not fit each other.
    """

    kind = "logistic"

    def __init__(
        self,
        ridge: RidgePerSet,
        masks: NDArray[Any],
        weights: NDArray[Any],
        scales: NDArray[Any],
        centres: NDArray[Any],
    ) -> None:
        super().__init__(ridge.widths, ridge.num_classes)
        self.ridge, self.masks = ridge, masks.astype(np.int64)
        self._weights, self._scales, self._centres = weights, scales, centres
        sizes = [len(self.rows(mask)) * self.num_classes for mask in self.masks.tolist()]
        ends = np.cumsum([0, *sizes]).tolist()
        if weights.shape != (ends[-1],) or len(scales) != len(masks) or centres.shape != (len(masks), self.num_classes):
            raise ShapeError(
                f"{weights.size:,} weights, {len(scales)} scales and centres {list(centres.shape)} do not fit the "
                f"{len(masks)} stored sets, which need {ends[-1]:,} weights"
            )
        self._places = {mask: (number, ends[number]) for number, mask in enumerate(self.masks.tolist())}

    @classmethod
    def pack(cls, ridge: RidgePerSet, solved: Mapping[int, tuple[NDArray[Any], NDArray[Any]]]) -> LogisticPerSet:
        """Stores solutions compactly.

        Args:
            ridge: answers for all other sets.
            solved: mask → W_S [D_S, K], rows in device order, and b_S [K].
        """
        masks = sorted(solved)
        heads = [(solved[m][0], solved[m][1] + ridge.mean[ridge.rows(m)] @ solved[m][0]) for m in masks]
        scales = np.array([np.abs(weight).max(initial=0.0) or 1.0 for weight, _ in heads], dtype=np.float32)
        # Divided by its largest weight a set keeps 11 bits from 1 down to 6e-5, and 6e-8 absolutely below.
        flat = [(w / scale).astype(np.float16).ravel() for (w, _), scale in zip(heads, scales, strict=True)]
        centres = np.array([c for _, c in heads], dtype=np.float32).reshape(len(masks), ridge.num_classes)
        weights = np.concatenate(flat) if flat else np.empty(0, np.float16)
        return cls(ridge, np.array(masks, dtype=np.int64), weights, scales, centres)

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        if mask not in self._places:
            return self.ridge.weights(mask)
        number, start = self._places[mask]
        rows = self.rows(mask)
        flat = self._weights[start : start + len(rows) * self.num_classes].astype(np.float64)
        weight = flat.reshape(len(rows), self.num_classes) * float(self._scales[number])
        return weight, self._centres[number] - self.ridge.mean[rows] @ weight

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self.ridge._arrays() | {
            "masks": self.masks,
            "weights": self._weights,
            "scales": self._scales,
            "centres": self._centres,
        }

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LogisticPerSet:
        ridge = RidgePerSet._from_arrays(arrays)
        return cls(ridge, arrays["masks"], arrays["weights"], arrays["scales"], arrays["centres"])


def enumerate_subsets(head: Head, features: Sequence[NDArray[Any]], labels: NDArray[np.int64]) -> SubsetTable:
    """Fuses every one of the 2^N answering sets and counts the correct answers; see ``nonn.enumeration``.

    Args:
        head: the fusion.
        features: features of each device over the same samples, N arrays [n, d_i].
        labels: the truth [n].

    Returns:
        The exact table; the empty set has no correct answer.
    """
    from nonn.enumeration import count_correct  # it knows the heads above

    return SubsetTable(count_correct(head, features, labels), len(labels))
