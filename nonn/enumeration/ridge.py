"""Enumeration for the ridge head, by block elimination along a depth-first tree.

Let S be the devices taken so far and r_j the features of an undecided device j less their regression on f_S. Taking
device i with ``[P B] = Σ_ii|S⁻¹ [Σ_iy|S  Σ_ij|S]`` adds ``r_i P`` to the logits and subtracts ``r_i B`` from r_j
(Frisch–Waugh–Lovell; the ridge stays on the diagonal). So a set costs one product of inner size d_i with its prefix's
state instead of Σ_{i∈S} d_i, and one small solve. Coefficients are exact (float64); states are float32.

Rounding: an error e in r_j, made at any step, ends as ``e W_{S,j}`` in the logits, because the coefficient of a
residual in the regression on what remains is that of the feature in the whole. So local errors add up, weighted by the
final W, instead of multiplying along the path. What is in doubt is fused from W in float64, and within 1e-5 of a tie
by the head's own solve.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nonn.enumeration.counter import UNIT_ROUNDOFF, Counter
from nonn.fusion import RidgePerSet

__all__ = ["count_ridge", "is_well_conditioned"]

Float32 = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_STATE = 100_000  # floats of one state: larger leaves the cache, smaller is lost in calls (measured)
_WEIGHTS = 1 << 22  # floats of the exact weights that are held at once: 34 MB
_CONDITION = 1e10  # beyond it two ways of solving may differ by more than the last test allows
_TIE = 1e-5  # margins below this share of the largest logit go to the head's own solve


def is_well_conditioned(head: RidgePerSet) -> bool:
    """Whether elimination in another order gives the same weights to about six digits."""
    covariance = head.normal_equations()[0]
    shrink = head.ridge * np.trace(covariance) / max(len(covariance), 1)
    return bool(np.isfinite(covariance).all() and np.trace(covariance) <= _CONDITION * shrink)


def count_ridge(head: RidgePerSet, counter: Counter) -> None:
    """Counts the correct answers of all 2^N sets.

    Args:
        head: the fusion, well conditioned.
        counter: takes the counts.
    """
    num_devices, num_classes = head.num_devices, head.num_classes
    # Devices are decided from the last to the first, so that the low bits of a mask change fastest; columns likewise.
    columns = np.concatenate([head.rows(1 << i) for i in reversed(range(num_devices))])
    covariance, target, mean, target_mean = head.normal_equations()
    system = np.concatenate([covariance[np.ix_(columns, columns)], target[columns]], axis=1)
    rows = counter.answerable
    samples = _Samples(counter, mean[columns], target_mean)
    centred = samples.centred(rows)
    peaks = np.abs(centred).max(axis=1, initial=0).astype(np.float64)
    low = min(num_devices, 7)
    while low > 1 and (len(columns) * num_classes << low) > _WEIGHTS:
        low -= 1
    size = max(64, min(2048, _STATE // (num_classes + max(head.widths))))
    blocks = []  # features [D, b], flat index of the true logits in [K, b], place of the block
    for start in range(0, len(rows), size):
        features = np.ascontiguousarray(centred[:, start : start + size])
        width = features.shape[1]
        labels = counter.labels[rows[start : start + size]]
        blocks.append((features, labels * width + np.arange(width), slice(start, start + width)))
    bottom = np.arange(len(columns) - sum(head.widths[:low]), len(columns))
    for high, kept, reduced, solution in _prefixes(system, head.widths, low):
        cell = _Cell(head.widths[:low], num_classes, reduced, solution)
        margins = np.empty((1 << low, len(rows)), dtype=np.float32)
        for features, own, place in blocks:
            cell.run(features[kept], features[bottom], target_mean, own, margins[:, place])
        doubt = cell.doubts(peaks[kept], peaks[bottom], np.abs(target_mean))
        masks = np.arange(high << low, (high + 1) << low)
        counter.judge(masks, rows, margins, doubt[:, None], partial(samples.settle, cell, kept, bottom))
        counter.report((high + 1) / (1 << (num_devices - low)))


class _Samples:
    """Features of all samples, and answers from exact weights.

    Args:
        counter: holds features and labels.
        mean: of the features, in the order of the columns [D].
        target_mean: mean logits [K].
    """

    def __init__(self, counter: Counter, mean: FloatArray, target_mean: FloatArray) -> None:
        self._counter, self._mean, self._target_mean = counter, mean, target_mean
        self._features = np.concatenate(list(reversed(counter.features)), axis=1)

    def centred(self, rows: IntArray) -> Float32:
        """Features less their mean [D, b]."""
        result: Float32 = (self._features[rows] - self._mean).astype(np.float32).T
        return result

    def settle(self, cell: _Cell, kept: IntArray, bottom: IntArray, mask: int, rows: IntArray) -> NDArray[np.bool_]:
        """Which samples a set gets right, from its weights in float64; near a tie from the head's own solve [b]."""
        chosen, weight = cell.weights[mask & (len(cell.weights) - 1)]
        columns = np.concatenate([kept, bottom[chosen]])
        x = self._features[np.ix_(rows, columns)].astype(np.float64) - self._mean[columns]
        logits = x @ weight + self._target_mean
        scale = np.abs(logits).max(axis=1)
        true_class = self._counter.labels[rows][:, None]
        true_logit = np.take_along_axis(logits, true_class, axis=1)[:, 0]
        np.put_along_axis(logits, true_class, -np.inf, axis=1)
        margin = logits.max(axis=1) - true_logit
        right: NDArray[np.bool_] = np.asarray(margin < 0)
        # Also where float32, in which the head's answer is taken, knows no such numbers; a NaN is tied.
        tied = ~((np.abs(margin) > _TIE * scale) & (scale > 1e-30) & (scale < 1e38))
        if tied.any():
            right[tied] = self._counter.fuse(mask, rows[tied])
        return right


def _take(system: FloatArray, solution: FloatArray, width: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Takes the first undecided device into the set.

    Args:
        system: what is left of [Σ + λ s I | Σ_y] given the set [D', D' + K].
        solution: coefficients of the undecided features and the targets on the set's [D_S, D' + K].
        width: d_i of the device.

    Returns:
        The next system and solution, and the device's own coefficients [d_i, D' − d_i + K].
    """
    solved = np.linalg.solve(system[:width, :width], system[:width, width:])
    coefficients: FloatArray = np.asarray(solved, dtype=np.float64)
    reduced: FloatArray = system[width:, width:] - system[width:, :width] @ coefficients
    grown: FloatArray = np.concatenate([solution[:, width:] - solution[:, :width] @ coefficients, coefficients])
    return reduced, grown, coefficients


def _prefixes(
    system: FloatArray, widths: tuple[int, ...], low: int
) -> Iterator[tuple[int, IntArray, FloatArray, FloatArray]]:
    """All sets of the devices from ``low`` on.

    Yields:
        The set's mask without the low devices, its columns, and what is left of the system and its solution.
    """

    def walk(
        device: int, high: int, columns: IntArray, start: int, left: FloatArray, solution: FloatArray
    ) -> Iterator[tuple[int, IntArray, FloatArray, FloatArray]]:
        if device < low:
            yield high, columns, left, solution
            return
        width = widths[device]
        # Leaving a device out: strike its rows and columns.
        yield from walk(device - 1, high, columns, start + width, left[width:, width:], solution[:, width:])
        reduced, grown, _ = _take(left, solution, width)
        taken = np.concatenate([columns, np.arange(start, start + width)])
        yield from walk(device - 1, high | 1 << (device - low), taken, start + width, reduced, grown)

    empty = np.empty((0, system.shape[1]))
    yield from walk(len(widths) - 1, 0, np.empty(0, np.int64), 0, system, empty)


class _Cell:
    """All completions of one prefix by the low devices: coefficients once, then block by block of samples.

    A state is [residual features of the undecided devices | logits] over samples, [D' + K, b].

    Args:
        widths: d_i of the low devices.
        num_classes: K.
        system: what the prefix leaves of the system [D', D' + K].
        solution: coefficients on the prefix's features [D_S, D' + K].

    Attributes:
        weights: of each completion, the low columns it uses and its exact W_S, the prefix's rows first.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int, system: FloatArray, solution: FloatArray) -> None:
        self.widths, self.num_classes = widths, num_classes
        self.weights: list[tuple[IntArray, FloatArray]] = [(np.empty(0, np.int64), solution)] * (1 << len(widths))
        self._steps: dict[tuple[int, int], Float32] = {}
        self._peaks: dict[tuple[int, int], FloatArray] = {}
        self._buffers: dict[tuple[int, int], Float32] = {}
        # Residuals shrink by what is explained, logits grow by it.
        sign = np.ones(system.shape[1])
        sign[: len(system)] = -1
        self._sign, self._rest = sign, len(system)
        self._root = np.ascontiguousarray((solution * sign).T.astype(np.float32))  # [D' + K, D_S]
        self._root_peak = np.zeros(len(system))
        self._plan(len(widths) - 1, 0, 0, np.empty(0, np.int64), system, solution)

    def _plan(
        self, device: int, mask: int, start: int, columns: IntArray, system: FloatArray, solution: FloatArray
    ) -> None:
        """Solves every completion of a partial choice."""
        if device < 0:
            self.weights[mask] = columns, solution
            return
        width = self.widths[device]
        reduced, grown, coefficients = _take(system, solution, width)
        signed = coefficients * self._sign[start + width :]
        self._steps[device, mask] = np.ascontiguousarray(signed.T.astype(np.float32))
        self._peaks[device, mask] = np.zeros(len(reduced))
        taken = np.concatenate([columns, np.arange(start, start + width)])
        self._plan(device - 1, mask | 1 << device, start + width, taken, reduced, grown)
        self._plan(device - 1, mask, start + width, columns, system[width:, width:], solution[:, width:])

    def run(self, kept: Float32, bottom: Float32, target_mean: FloatArray, own: IntArray, margins: Float32) -> None:
        """Margins of every completion over one block.

        Args:
            kept: centred features of the prefix [D_S, b].
            bottom: centred features of the low devices [D', b].
            target_mean: [K].
            own: flat index of each sample's true logit in [K, b].
            margins: takes the result [2^low, b].
        """
        state = self._root @ kept
        state[: self._rest] += bottom
        state[self._rest :] += target_mean.astype(np.float32)[:, None]
        self._see(self._root_peak, state)
        self._walk(len(self.widths) - 1, 0, state, own, margins)

    def _walk(self, device: int, mask: int, state: Float32, own: IntArray, margins: Float32) -> None:
        if device < 0:
            # The true class leaves the race. A state is judged last of all that is made from it, so that it may be
            # spoilt: with a device comes before without it, at every level.
            flat, row = state.reshape(-1), margins[mask]
            true_logit = flat[own]
            flat[own] = -np.inf
            np.maximum.reduce(state, axis=0, out=row)
            np.subtract(row, true_logit, out=row)
            return
        width, step = self.widths[device], self._steps[device, mask]
        shape = (len(step), state.shape[1])
        buffer = self._buffers.get((device, shape[1]))
        if buffer is None:
            buffer = self._buffers[device, shape[1]] = np.empty(shape, dtype=np.float32)
        np.matmul(step, state[:width], out=buffer)
        np.add(buffer, state[width:], out=buffer)
        self._see(self._peaks[device, mask], buffer)
        self._walk(device - 1, mask | 1 << device, buffer, own, margins)
        self._walk(device - 1, mask, state[width:], own, margins)

    def _see(self, peak: FloatArray, state: Float32) -> None:
        """Keeps the largest residuals ever met [D'], for the error bound."""
        rest = len(peak)
        if rest:
            np.maximum(peak, state[:rest].max(axis=1), out=peak)
            np.maximum(peak, -state[:rest].min(axis=1), out=peak)

    def doubts(self, kept: FloatArray, bottom: FloatArray, target_mean: FloatArray) -> Float32:
        """What the margins of each completion may be wrong by, to first order, times two [2^low].

        Args:
            kept: largest |feature| of the prefix [D_S].
            bottom: of the low devices [D'].
            target_mean: |mean logit| [K].
        """
        result = np.empty(1 << len(self.widths), dtype=np.float32)
        unit = UNIT_ROUNDOFF
        grown = np.abs(self._root).astype(np.float64) @ kept
        height = np.concatenate([bottom, target_mean]) + grown
        error = unit * ((len(kept) + 2) * grown + 2 * height)

        def walk(
            device: int, mask: int, peak: FloatArray, error: FloatArray, height: FloatArray, taken: FloatArray
        ) -> None:
            if device < 0:
                final = error + taken @ np.abs(self.weights[mask][1])
                # Twice for the two logits of a margin, twice for what a first-order bound leaves out.
                result[mask] = 4 * float(final.max()) + 2 * unit * float(height.max())
                return
            width, rest = self.widths[device], len(peak) - self.widths[device]
            added = np.abs(self._steps[device, mask]) @ peak[:width]
            next_peak, next_height = self._peaks[device, mask], height + added[rest:]
            made = unit * ((width + 2) * added + np.concatenate([next_peak, next_height]))
            following = np.concatenate([taken, error[:width]])
            walk(device - 1, mask | 1 << device, next_peak, error[width:] + made, next_height, following)
            walk(device - 1, mask, peak[width:], error[width:], height, taken)

        root_height = height[self._rest :]
        walk(len(self.widths) - 1, 0, self._root_peak, error, root_height, unit * kept)
        return result
