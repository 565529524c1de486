"""The fast part of the ridge enumeration: margins of all completions of a prefix in float32, and their error bounds.

Rounding: an error e in a residual r_j, made at any step, becomes ``e W_{S,j}`` in the logits, because the coefficient
of a residual in the regression on the rest equals that of the feature in the full regression. Local errors therefore
add up, weighted by the final W, instead of multiplying along the path. The peaks of the residuals are recorded.
Rounding of the prefix's features is an error of the state that is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nonn.enumeration.counter import UNIT_ROUNDOFF
from nonn.enumeration.elimination import CellPlan

__all__ = ["CellRun", "Peaks", "margin_bounds"]

Float32 = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Peaks:
    """Largest absolute residuals over all samples so far.

    Attributes:
        root: peaks of the low devices' features after the prefix [D'], in float32 as the states are.
        steps: by device, peaks of the features that are undecided after each of its steps [2^(low − 1 − i), D_i].
    """

    root: Float32
    steps: Sequence[Float32]

    @classmethod
    def of(cls, plan: CellPlan) -> Self:
        """No residuals yet."""
        steps = [np.zeros((len(step), step.shape[1] - plan.num_classes), np.float32) for step in plan.steps]
        return cls(np.zeros(plan.num_features, np.float32), steps)


class CellRun:
    """Margins of every completion of one prefix, block by block of samples.

    Args:
        plan: plan of the completions.

    Attributes:
        peaks: largest residuals so far, for the error bound.
    """

    def __init__(self, plan: CellPlan) -> None:
        self._plan = plan
        self.peaks = Peaks.of(plan)
        self._buffers: dict[tuple[int, int], Float32] = {}

    def run(self, kept: Float32, bottom: Float32, target_mean: FloatArray, own: IntArray, margins: Float32) -> None:
        """Margins of every completion over one block.

        Args:
            kept: centred features of the prefix [D_S, b].
            bottom: centred features of the low devices [D', b].
            target_mean: [K].
            own: flat index of each sample's true logit in [K, b].
            margins: receives the result [2^low, b].
        """
        state = self._plan.root @ kept
        state[: len(bottom)] += bottom
        state[len(bottom) :] += target_mean.astype(np.float32)[:, None]
        _raise_peak(self.peaks.root, state)
        self._walk(len(self._plan.widths) - 1, 0, state, own, margins)

    def _walk(self, device: int, mask: int, state: Float32, own: IntArray, margins: Float32) -> None:
        if device < 0:
            # The true class is excluded from the maximum. This overwrites the state, which is safe: states derived
            # from it are judged before it (at every level, with a device comes before without it).
            flat, row = state.reshape(-1), margins[mask]
            true_logit = flat[own]
            flat[own] = -np.inf
            np.maximum.reduce(state, axis=0, out=row)
            np.subtract(row, true_logit, out=row)
            return
        above = mask >> (device + 1)
        width, step = self._plan.widths[device], self._plan.steps[device][above]
        shape = (len(step), state.shape[1])
        buffer = self._buffers.get((device, shape[1]))
        if buffer is None:
            buffer = self._buffers[device, shape[1]] = np.empty(shape, dtype=np.float32)
        np.matmul(step, state[:width], out=buffer)
        np.add(buffer, state[width:], out=buffer)
        if device:
            _raise_peak(self.peaks.steps[device][above], buffer)
        self._walk(device - 1, mask | 1 << device, buffer, own, margins)
        self._walk(device - 1, mask, state[width:], own, margins)


def margin_bounds(
    plan: CellPlan, peaks: Peaks, kept: FloatArray, bottom: FloatArray, target_mean: FloatArray
) -> Float32:
    """Error bounds of the margins of each completion: to first order, times two [2^low].

    Args:
        plan: plan of the completions.
        peaks: peaks of the residuals of all samples.
        kept: largest |feature| of the prefix [D_S].
        bottom: largest |feature| of the low devices [D'].
        target_mean: |mean logit| [K].
    """
    bounds = np.empty(len(plan.weights), dtype=np.float32)
    unit = UNIT_ROUNDOFF

    def walk(
        device: int, mask: int, peak: FloatArray, error: FloatArray, height: FloatArray, taken: FloatArray
    ) -> None:
        """Tracks errors of the state, sizes of the logits, and errors of the residuals taken into the set."""
        if device < 0:
            final = error + taken @ np.abs(plan.weights[mask][1])
            # Twice for the two logits of a margin, twice for the terms that a first-order bound omits.
            bounds[mask] = 4 * float(final.max()) + 2 * unit * float(height.max())
            return
        width, rest, above = plan.widths[device], len(peak) - plan.widths[device], mask >> (device + 1)
        added = np.abs(plan.steps[device][above]) @ peak[:width]
        next_peak, next_height = peaks.steps[device][above].astype(np.float64), height + added[rest:]
        made = unit * ((width + 2) * added + np.concatenate([next_peak, next_height]))
        following = np.concatenate([taken, error[:width]])
        walk(device - 1, mask | 1 << device, next_peak, error[width:] + made, next_height, following)
        walk(device - 1, mask, peak[width:], error[width:], height, taken)

    grown = np.abs(plan.root).astype(np.float64) @ kept
    height = np.concatenate([bottom, target_mean]) + grown
    error = unit * ((len(kept) + 3) * grown + 2 * height)
    walk(len(plan.widths) - 1, 0, peaks.root.astype(np.float64), error, height[plan.num_features :], np.empty(0))
    return bounds


def _raise_peak(peak: Float32, state: Float32) -> None:
    """Raises the peaks of the residuals in a state [D']."""
    residuals = state[: len(peak)]
    np.maximum(peak, np.maximum.reduce(residuals, axis=1), out=peak)
    np.maximum(peak, -np.minimum.reduce(residuals, axis=1), out=peak)
