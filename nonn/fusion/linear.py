"""Heads that are linear in the features that arrived, with weights that are solved once for each subset of devices."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.fusion.head import FloatArray, Head

__all__ = ["LinearHead"]

# Limit of the solutions that a head keeps: all 255 subsets of eight devices with 64 features and 100 classes fit; with
# 16 devices the last 160.
MAX_SOLVED_BYTES = 64 * 1024 * 1024


class _Solutions:
    """A cache of the most recent solutions, limited in bytes; thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[FloatArray, FloatArray]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def __contains__(self, mask: int) -> bool:
        return mask in self._kept

    def masks(self) -> list[int]:
        with self._lock:
            return list(self._kept)

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


class LinearHead(Head):
    """A head with ``z_S = concat(f_i, i in S) · W_S + b_S``."""

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__(widths, num_classes)
        self._solved = _Solutions()

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
        self._check(mask)
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

    def solve(self, mask: int) -> None:
        """Caches the weights of a subset."""
        self.weights(mask)

    def solved(self) -> list[int]:
        """The subsets whose weights are cached."""
        return self._solved.masks()

    def solved_bytes(self, mask: int) -> int:
        """Size of the weights of a subset, bytes."""
        return 8 * (len(self.rows(mask)) + 1) * self.num_classes

    @property
    def cache_bytes(self) -> int:
        """Limit of the cached weights, bytes."""
        return MAX_SOLVED_BYTES

    def _fuse(self, mask: int, arrived: Sequence[NDArray[Any]], keep: bool) -> FloatArray:
        weight, bias = self.weights(mask, keep=keep)
        result: FloatArray = np.concatenate(arrived, axis=1, dtype=np.float64) @ weight + bias
        return result

    @abstractmethod
    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        """W_S [D_S, K] and b_S [K] of one subset."""
