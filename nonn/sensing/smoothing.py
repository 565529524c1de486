"""Smoothing of answers over time: the belief in each class after a sequence of windows.

Each window gives fused probabilities p_t [K], of whichever devices sensed. From them and the belief b before:

- ``exponential``: ``b_t = (1 − α) b_{t−1} + α p_t`` with ``α = 1 − exp(−hop / τ)``.
- ``hmm``: forward filter of a hidden Markov model, ``b_t ∝ (p_t / π)^w ⊙ (b_{t−1} A)``. The prior π and the transitions
  A are learned from the order of the training labels, with one pseudo-count for each class. Probabilities divided by
  the prior are likelihoods up to a factor, so that no model of the features is needed. Windows that overlap share
  samples; w = min(1, hop / window) uses each sample once.
- ``hmm-stay``: the same, but A has only the learned probability that a class goes on; all changes are equally probable.
  In most recordings somebody arranged the order of the activities, and life has another one.

A gap of h hops decays the belief h times. Every p_t is mixed with ``FLOOR`` of the uniform distribution, so that one
over-confident window cannot rule out a class.

Limits: a filter looks back only, so each change is followed late; ``nonn.enumeration.smoothed`` measures how late. Pure
and NumPy only: the aggregator, the measurement and the simulator share it.

Reference: Rabiner 1989, "A tutorial on hidden Markov models and selected applications in speech recognition"; Bourlard
and Morgan 1994, "Connectionist speech recognition" (posteriors divided by priors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import BundleError, DataError

__all__ = ["DEVICES", "Smoothing", "learn", "weight_of"]

FLOOR = 0.01
DEVICES = 10  # for which every subset is measured
MAX_HOPS = 10_000  # of a gap; no belief is left by then
KINDS = ("exponential", "hmm", "hmm-stay")

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Smoothing:
    """A filter; the belief is kept by the caller.

    Attributes:
        kind: ``exponential``, ``hmm`` or ``hmm-stay``.
        weight: α of the newest window, or the exponent w of its likelihood.
        prior: π [K].
        transitions: A [K, K], from rows to columns.

    Raises:
        BundleError: the values are not those of a filter.
    """

    kind: str
    weight: float
    prior: FloatArray
    transitions: FloatArray

    def __post_init__(self) -> None:
        num = len(self.prior)
        if (
            self.kind not in KINDS
            or not 0 < self.weight <= 1
            or self.transitions.shape != (num, num)
            or not (self.prior > 0).all()
            or not np.allclose(self.transitions.sum(axis=1), 1)
        ):
            raise BundleError(f"smoothing '{self.kind}': its values are no filter; build the bundle again")

    def step(self, belief: FloatArray | None, probabilities: FloatArray, hops: int = 1) -> FloatArray:
        """The belief after one more window.

        Args:
            belief: before it [..., K]; None at the start.
            probabilities: of the classes in this window [..., K].
            hops: since the window before; more than 1 after windows without an answer.

        Returns:
            [..., K], which sums to 1.
        """
        p = (1 - FLOOR) * probabilities + FLOOR / len(self.prior)
        hops = min(hops, MAX_HOPS)
        if self.kind == "exponential":
            kept = (1 - self.weight) ** hops
            return p if belief is None else kept * belief + (1 - kept) * p
        before = self.prior if belief is None else belief @ np.linalg.matrix_power(self.transitions, hops)
        product = before * (p / self.prior) ** self.weight
        result: FloatArray = product / product.sum(axis=-1, keepdims=True)
        return result

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Its values, for the bundle."""
        return {
            "kind": np.array(self.kind),
            "weight": np.array(self.weight),
            "prior": self.prior,
            "transitions": self.transitions,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Smoothing:
        """The inverse of ``to_arrays``.

        Raises:
            BundleError: the values are not those of a filter.
            KeyError: an array is missing.
        """
        return cls(str(arrays["kind"]), float(arrays["weight"]), arrays["prior"], arrays["transitions"])


def learn(
    kind: str, labels: NDArray[np.int64], places: NDArray[np.int64], num_classes: int, weight: float
) -> Smoothing:
    """Learns a filter from the order of training labels.

    Args:
        kind: of the filter.
        labels: of the training windows, in any order [n].
        places: recording of each and its place in it [n, 2].
        num_classes: K.
        weight: see ``Smoothing``.

    Raises:
        DataError: no window follows another.
    """
    order = np.lexsort((places[:, 1], places[:, 0]))
    where, sorted_labels = places[order], labels[order]
    follows = (np.diff(where[:, 0]) == 0) & (np.diff(where[:, 1]) == 1)
    if not follows.any():
        raise DataError(
            "no training window follows another in its recording, so no transition can be learned from them"
        )
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (sorted_labels[:-1][follows], sorted_labels[1:][follows]), 1)
    prior = np.bincount(labels, minlength=num_classes) + 1.0
    if kind == "hmm-stay":
        stays = (np.diag(counts) + 1) / (counts.sum(axis=1) + 2)
        transitions = np.repeat((1 - stays)[:, None] / max(1, num_classes - 1), num_classes, axis=1)
        np.fill_diagonal(transitions, stays if num_classes > 1 else 1.0)
    else:
        transitions = (counts + 1 / num_classes) / (counts.sum(axis=1, keepdims=True) + 1)
    return Smoothing(kind, weight, prior / prior.sum(), transitions)


def weight_of(kind: str, hop_s: float, window_s: float, smooth_s: float) -> float:
    """Weight of the newest window, from durations in seconds; see the module."""
    return 1 - math.exp(-hop_s / smooth_s) if kind == "exponential" else min(1.0, hop_s / window_s)
