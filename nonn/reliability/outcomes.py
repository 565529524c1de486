"""Which test samples each subset of devices classifies correctly, as packed bits. NumPy only.

Accuracies of different subsets are counted on the same samples, so their errors coincide. A table of counts does not
show that; this does. A weighted sum of accuracies is the mean of one score for each sample (``scores``), and a new test
set of the same size is imitated by new weights of the samples, the same for all subsets (``resampled``).

Size: 2^N ÷ 8 bytes a sample, compressed on disk: 32 bytes for eight devices, 512 for twelve. Beyond ``LIMIT_BITS``
(8 MiB: 2^26 bits) the outcomes of a random choice of samples are kept: of 16,384 for N = 12, of 1,024 for N = 16. Where
only some subsets are evaluated (``nonn.reliability.sampled``), these take the places of the 2^N masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError

__all__ = ["LIMIT_BITS", "Outcomes", "kept_samples"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LIMIT_BITS = 1 << 26
_SEED = 0  # of the choice of samples
_UNPACKED = 1 << 24  # values unpacked at once: 64 MB as float32


def kept_samples(num_devices: int, samples: int, sets: int | None = None) -> IntArray:
    """Numbers of the samples whose outcomes are kept, ascending: all of them up to ``LIMIT_BITS``.

    Args:
        num_devices: N.
        samples: number of samples.
        sets: number of subsets, if these are not all 2^N.
    """
    most = max(1, LIMIT_BITS // (1 << num_devices if sets is None else sets))
    if samples <= most:
        return np.arange(samples)
    return np.sort(np.random.default_rng(_SEED).choice(samples, most, replace=False))


class Outcomes:
    """The outcome of every kept sample with every subset.

    Args:
        packed: bits by mask, the lowest mask in the lowest bit [m, 2^N / 8]; one byte where 2^N < 8.
        num_devices: N.
        samples: samples n of the accuracies; m ≤ n of them are kept.
        sets: number of subsets, if these are not all 2^N; their places replace the masks.

    Raises:
        ShapeError: the array does not fit N and n.
    """

    def __init__(self, packed: NDArray[np.uint8], num_devices: int, samples: int, sets: int | None = None) -> None:
        self.sets, self._has_empty = 1 << num_devices if sets is None else sets, sets is None
        wanted = -(-self.sets // 8)
        if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != wanted or not 1 <= len(packed) <= samples:
            raise ShapeError(
                f"outcomes {packed.dtype} {list(packed.shape)} for {num_devices} devices and {samples} samples; "
                f"expected uint8 [m, {wanted}] with 1 ≤ m ≤ {samples}"
            )
        self.packed, self.num_devices, self.samples = packed, num_devices, samples

    @classmethod
    def of(cls, right: NDArray[np.bool_], samples: int | None = None, num_devices: int | None = None) -> Outcomes:
        """Packs outcomes.

        Args:
            right: whether each subset classifies each kept sample correctly [m, 2^N].
            samples: n; None where every sample is kept.
            num_devices: N, if the subsets are not all 2^N.
        """
        packed = np.packbits(right, axis=1, bitorder="little")
        count = len(right) if samples is None else samples
        if num_devices is not None:
            return cls(packed, num_devices, count, right.shape[1])
        return cls(packed, right.shape[1].bit_length() - 1, count)

    @property
    def kept(self) -> int:
        """Number m of samples whose outcomes are kept."""
        return len(self.packed)

    def right(self, mask: int) -> NDArray[np.bool_]:
        """Whether one subset classifies each kept sample correctly [m]."""
        return (self.packed[:, mask >> 3] >> (mask & 7) & 1).astype(bool)

    def columns(self, places: IntArray) -> NDArray[np.bool_]:
        """Whether some subsets classify each kept sample correctly [q, m]."""
        return (self.packed[:, places >> 3] >> (places & 7) & 1).astype(bool).T

    def correct(self) -> IntArray:
        """Correct samples of each subset among those kept [2^N]."""
        return sum((block.sum(axis=0, dtype=np.int64) for _, block in self._blocks()), np.zeros(self.sets, np.int64))

    def scores(self, weights: FloatArray) -> FloatArray:
        """Weighted sums over subsets for each kept sample; the mean over samples is the weighted sum of accuracies.

        Args:
            weights: of each subset [q, 2^N].

        Returns:
            [q, m].
        """
        result = np.empty((len(weights), self.kept))
        for rows, block in self._blocks():
            result[:, rows] = weights @ block.T.astype(np.float64)
        return result

    def resampled(self, draws: int, seed: int = 0) -> NDArray[np.float32]:
        """Accuracies of all subsets as other test sets of n samples could show them.

        A Bayesian bootstrap: samples get random weights, the same for every subset. Half a sample that every subset
        gets right and half a sample that every subset gets wrong are added, so that the accuracy of one subset follows
        the posterior of Jeffreys' prior, Beta(k + ½, n − k + ½), also where no error was seen.

        Args:
            draws: number B of test sets.
            seed: of the weights.

        Returns:
            [B, 2^N]; the empty subset has an accuracy of 0.

        Sources: Rubin 1981, "The Bayesian bootstrap"; Brown, Cai, DasGupta 2001, "Interval estimation for a binomial
        proportion".
        """
        rng = np.random.default_rng(seed)
        extra = rng.standard_gamma(0.5, (draws, 2))
        total, result = extra.sum(axis=1), np.zeros((draws, self.sets), dtype=np.float32)
        for _, block in self._blocks():
            weight = rng.standard_exponential((draws, len(block)))
            total += weight.sum(axis=1)
            result += weight.astype(np.float32) @ block.astype(np.float32)
        result += extra[:, :1].astype(np.float32)
        result /= total[:, None].astype(np.float32)
        if self.kept < self.samples:  # fewer samples vary more
            middle = result.mean(axis=0)
            result = middle + (result - middle) * np.float32(np.sqrt((self.kept + 2) / (self.samples + 2)))
        if self._has_empty:
            result[:, 0] = 0
        return result.clip(0, 1)

    def halves(self, seed: int) -> tuple[IntArray, IntArray]:
        """Correct samples of each subset in two random halves of the kept samples, [2^N] each."""
        first = np.zeros(self.kept, dtype=bool)
        first[np.random.default_rng(seed).permutation(self.kept)[: self.kept // 2]] = True
        chosen, total = np.zeros(self.sets, dtype=np.int64), np.zeros(self.sets, dtype=np.int64)
        for rows, block in self._blocks():
            total += block.sum(axis=0, dtype=np.int64)
            chosen += block[first[rows]].sum(axis=0, dtype=np.int64)
        return chosen, total - chosen

    def _blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Unpacked blocks of samples: their places and outcomes [b, 2^N]."""
        size = max(1, _UNPACKED // self.sets)
        for start in range(0, self.kept, size):
            rows = slice(start, start + size)
            yield rows, np.unpackbits(self.packed[rows], axis=1, count=self.sets, bitorder="little")
