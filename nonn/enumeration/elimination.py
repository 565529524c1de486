"""The exact part of the ridge enumeration: block elimination in float64, and the plan that it makes for float32.

Let S be the devices taken so far and r_j the features of an undecided device j less their regression on f_S. Taking
device i with ``[P B] = Σ_ii|S⁻¹ [Σ_iy|S  Σ_ij|S]`` adds ``r_i P`` to the logits and subtracts ``r_i B`` from r_j
(Frisch-Waugh-Lovell; the ridge stays on the diagonal). ``prefixes`` decides the high devices; ``plan_cell`` solves all
completions of one prefix by the low devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    device i and on which of the low devices above it were taken before: ``mask >> (i + 1)``.

    Attributes:
        widths: d_i of the low devices.
        num_features: D', features of all low devices.
        root: maps the prefix's features to a state [D' + K, D_S].
        steps: by device, a step for each set of the devices above it [2^(low − 1 − i), D_i + K, d_i] with D_i features
            below it.
        solution: exact coefficients of the low features and the targets on the prefix's features [D_S, D' + K].
        weights: by completion, the low columns that it uses and their rows of its exact W_S, which multiply the
            residuals of these features.
    """

    widths: Sequence[int]
    num_features: int
    root: Float32
    steps: Sequence[Float32]
    solution: FloatArray
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
        coefficients = _coefficients(left, width)
        reduced = left[width:, width:] - left[width:, :width] @ coefficients
        taken = np.concatenate([columns, np.arange(start, start + width)])
        grown = _grow(solution, coefficients)
        yield from walk(device - 1, mask | 1 << (device - low), taken, start + width, reduced, grown)

    yield from walk(len(widths) - 1, 0, np.empty(0, np.int64), 0, system, np.empty((0, system.shape[1])))


def plan_cell(widths: Sequence[int], system: FloatArray, solution: FloatArray) -> CellPlan:
    """Solves every completion of a prefix.

    Args:
        widths: d_i of the low devices.
        system: the system given the prefix [D', D' + K].
        solution: coefficients on the prefix's features [D_S, D' + K].
    """
    # The explained part is subtracted from residuals and added to logits.
    sign = np.ones(system.shape[1])
    sign[: len(system)] = -1
    solved: list[FloatArray] = []
    left, start = system[None], 0  # one system for each set of the devices above
    for width in reversed(widths):
        start += width
        solved.append(_coefficients(left, width))
        rest = left[:, width:, width:]
        without_and_with = np.stack([rest, rest - left[:, width:, :width] @ solved[-1]], axis=1)
        left = without_and_with.reshape(2 * len(left), *rest.shape[1:])
    solved.reverse()
    steps = [_to_step(of_device, sign[len(sign) - of_device.shape[-1] :]) for of_device in solved]
    none, nothing = np.empty(0, np.int64), np.empty((0, system.shape[1]))
    weights: list[tuple[IntArray, FloatArray]] = [(none, nothing)] * (1 << len(widths))

    def walk(device: int, mask: int, start: int, columns: IntArray, low: FloatArray) -> None:
        if device < 0:
            weights[mask] = columns, low
            return
        width = widths[device]
        grown = _grow(low, solved[device][mask >> (device + 1)])
        taken = np.concatenate([columns, np.arange(start, start + width)])
        walk(device - 1, mask | 1 << device, start + width, taken, grown)
        walk(device - 1, mask, start + width, columns, low[:, width:])

    walk(len(widths) - 1, 0, 0, none, nothing)
    return CellPlan(widths, len(system), _to_step(solution, sign), steps, solution, weights)


def _coefficients(system: FloatArray, width: int) -> FloatArray:
    """Coefficients of the rest on the first undecided device, of one or several systems.

    The inverse of the small block and a product take a third of the time of a solution with as many right-hand sides.

    Args:
        system: [Σ + λ s I | Σ_y] given the devices taken so far [..., D', D' + K].
        width: d_i of the device.

    Returns:
        [..., d_i, D' − d_i + K].
    """
    found: FloatArray = np.linalg.inv(system[..., :width, :width]) @ system[..., :width, width:]
    return found


def _grow(solution: FloatArray, coefficients: FloatArray) -> FloatArray:
    """Coefficients of the undecided features and the targets once the first undecided device is taken.

    Args:
        solution: the same before, on the set's features [D_S, D' + K].
        coefficients: of the rest on the device [d_i, D' − d_i + K].

    Returns:
        [D_S + d_i, D' − d_i + K].
    """
    width, size = len(coefficients), len(solution)
    grown = np.empty((size + width, coefficients.shape[1]))
    np.matmul(solution[:, :width], coefficients, out=grown[:size])
    np.subtract(solution[:, width:], grown[:size], out=grown[:size])
    grown[size:] = coefficients
    return grown


def _to_step(coefficients: FloatArray, sign: FloatArray) -> Float32:
    """Coefficients [..., d, D' + K] as steps [..., D' + K, d]."""
    return np.ascontiguousarray((coefficients * sign).swapaxes(-1, -2).astype(np.float32))
