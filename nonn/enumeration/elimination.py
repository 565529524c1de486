"""The exact part of the ridge enumeration: block elimination in float64, and the plan that it makes for float32.

Let S be the devices taken so far and r_j the features of an undecided device j less their regression on f_S. Taking
device i with ``[P B] = Σ_ii|S⁻¹ [Σ_iy|S  Σ_ij|S]`` adds ``r_i P`` to the logits and subtracts ``r_i B`` from r_j
(Frisch-Waugh-Lovell; the ridge stays on the diagonal). ``prefixes`` decides the high devices; ``plan_cell`` solves all
completions of one prefix by the low devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CellPlan", "Prefix", "plan_cell", "prefixes"]

Float32 = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Prefix:
    """A set of the high devices.

    Attributes:
        mask: mask of the set, without the low devices' bits.
        columns: columns of the set's features [D_S].
        system: [Σ + λ s I | Σ_y] of the low devices given the set [D', D' + K].
        solution: coefficients of the low features and the targets on the set's [D_S, D' + K].
    """

    mask: int
    columns: IntArray
    system: FloatArray
    solution: FloatArray


@dataclass(frozen=True)
class CellPlan:
    """All completions of one prefix by the low devices.

    A state is [residual features of the undecided devices | logits] over samples, [D' + K, b]. A step is the matrix
    that takes a device: multiplied by the device's residuals, it is added to the rest of the state. It depends on the
    device and on the mask of the low devices taken before it.

    Attributes:
        widths: d_i of the low devices.
        num_features: D', features of all low devices.
        root: maps the prefix's features to a state [D' + K, D_S].
        steps: step by device and mask [D' − d_i + K, d_i].
        weights: by completion, the low columns that it uses and its exact W_S, the prefix's rows first.
    """

    widths: Sequence[int]
    num_features: int
    root: Float32
    steps: Mapping[tuple[int, int], Float32]
    weights: Sequence[tuple[IntArray, FloatArray]]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.root) - self.num_features


def prefixes(system: FloatArray, widths: Sequence[int], low: int) -> Iterator[Prefix]:
    """All sets of the devices from ``low`` on.

    Args:
        system: [Σ + λ s I | Σ_y], columns from the last device to the first [D, D + K].
        widths: d_i of all devices.
        low: number of devices that stay undecided.
    """

    def walk(
        device: int, mask: int, columns: IntArray, start: int, left: FloatArray, solution: FloatArray
    ) -> Iterator[Prefix]:
        if device < low:
            yield Prefix(mask, columns, left, solution)
            return
        width = widths[device]
        # Leaving a device out removes its rows and columns.
        yield from walk(device - 1, mask, columns, start + width, left[width:, width:], solution[:, width:])
        reduced, grown, _ = _take(left, solution, width)
        taken = np.concatenate([columns, np.arange(start, start + width)])
        yield from walk(device - 1, mask | 1 << (device - low), taken, start + width, reduced, grown)

    yield from walk(len(widths) - 1, 0, np.empty(0, np.int64), 0, system, np.empty((0, system.shape[1])))


def plan_cell(widths: Sequence[int], system: FloatArray, solution: FloatArray) -> CellPlan:
    """Solves every completion of a prefix.

    Args:
        widths: d_i of the low devices.
        system: the system given the prefix [D', D' + K].
        solution: coefficients on the prefix's features [D_S, D' + K].
    """
    steps: dict[tuple[int, int], Float32] = {}
    weights: list[tuple[IntArray, FloatArray]] = [(np.empty(0, np.int64), solution)] * (1 << len(widths))
    # The explained part is subtracted from residuals and added to logits.
    sign = np.ones(system.shape[1])
    sign[: len(system)] = -1

    def walk(device: int, mask: int, start: int, columns: IntArray, left: FloatArray, solution: FloatArray) -> None:
        if device < 0:
            weights[mask] = columns, solution
            return
        width = widths[device]
        reduced, grown, coefficients = _take(left, solution, width)
        steps[device, mask] = _to_step(coefficients, sign[start + width :])
        taken = np.concatenate([columns, np.arange(start, start + width)])
        walk(device - 1, mask | 1 << device, start + width, taken, reduced, grown)
        walk(device - 1, mask, start + width, columns, left[width:, width:], solution[:, width:])

    walk(len(widths) - 1, 0, 0, np.empty(0, np.int64), system, solution)
    return CellPlan(widths, len(system), _to_step(solution, sign), steps, weights)


def _take(system: FloatArray, solution: FloatArray, width: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Takes the first undecided device into the set.

    Args:
        system: [Σ + λ s I | Σ_y] given the set [D', D' + K].
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


def _to_step(coefficients: FloatArray, sign: FloatArray) -> Float32:
    """Coefficients [d, D' + K] as a step [D' + K, d]."""
    return np.ascontiguousarray((coefficients * sign).T.astype(np.float32))
