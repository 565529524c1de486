"""Search for the placement with the highest expected accuracy: branch and bound, and local search.

Used by ``nonn.reliability.placement``. A placement is one number for each device: its student, or −1 for none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.laws.base import FloatArray
from nonn.reliability.table import SubsetTable

__all__ = ["PlacementSearch", "expected_accuracy"]

_GAIN = 1e-12  # smaller gains are rounding


def expected_accuracy(table: SubsetTable, p_up: FloatArray) -> float:
    """Expected accuracy when student i answers with probability ``p_up[i]``, independently [N]."""
    values = table.accuracy
    for up in reversed(p_up):
        half = len(values) // 2
        values = (1 - up) * values[:half] + up * values[half:]
    return float(values[0])


class PlacementSearch:
    """Placements of students on devices, and their expected accuracy.

    Args:
        table: accuracy of every subset of students.
        p_fail: probability that each device does not answer [Q].
        fits: whether each device can run each student [Q, N].
    """

    def __init__(self, table: SubsetTable, p_fail: FloatArray, fits: NDArray[np.bool_]) -> None:
        self.table, self.p_fail, self.fits = table, p_fail, fits
        self.options = [[*np.flatnonzero(row).tolist(), -1] for row in fits]

    def p_up(self, students: Sequence[int]) -> FloatArray:
        """Probability that each student answers [N]."""
        down = np.ones(self.table.num_devices)
        for student, p in zip(students, self.p_fail, strict=False):
            if student >= 0:
                down[student] *= p
        return 1 - down

    def value(self, students: Sequence[int]) -> float:
        """Expected accuracy of a placement."""
        return expected_accuracy(self.table, self.p_up(students))

    def assignment(self) -> list[int]:
        """Assigns important students to reliable devices, one to one, by scipy's linear assignment."""
        from scipy.optimize import linear_sum_assignment

        # Accuracy lost if a student fails while the others are as reliable as the average device.
        middle = np.full(self.table.num_devices, 1 - self.p_fail.mean())
        worth = []
        for student in range(self.table.num_devices):
            ends = []
            for up in (1.0, 0.0):
                p_up = middle.copy()
                p_up[student] = up
                ends.append(expected_accuracy(self.table, p_up))
            worth.append(ends[0] - ends[1])
        profit = np.where(self.fits, np.outer(1 - self.p_fail, worth), -1e6)
        result = [-1] * len(self.p_fail)
        devices, students = linear_sum_assignment(profit, maximize=True)
        for device, student in zip(devices.tolist(), students.tolist(), strict=True):
            if self.fits[device, student]:
                result[device] = student
        return result

    def random(self, rng: np.random.Generator) -> list[int]:
        """A random placement."""
        return [int(rng.choice(options)) for options in self.options]

    def climb(self, students: list[int]) -> list[int]:
        """Local search: changes one device's student or swaps two until nothing improves."""
        best, value = list(students), self.value(students)
        while True:
            found = None
            for candidate in self._neighbours(best):
                reached = self.value(candidate)
                if reached > value + _GAIN:
                    found, value = candidate, reached
            if found is None:
                return best
            best = found

    def _neighbours(self, students: list[int]) -> list[list[int]]:
        result: list[list[int]] = []
        for device, options in enumerate(self.options):
            others = (student for student in options if student != students[device])
            result.extend([*students[:device], student, *students[device + 1 :]] for student in others)
            for other in range(device):
                if students[other] in options and students[device] in self.options[other]:
                    swapped = list(students)
                    swapped[device], swapped[other] = students[other], students[device]
                    result.append(swapped)
        return result

    def branch_and_bound(self, students: list[int]) -> list[int]:
        """The optimum: decides one device at a time, the most reliable first, and prunes branches below the best.

        Args:
            students: a good placement to start from.
        """
        # Accuracy may fall as a set grows, so the bound uses the best subset of each set: it is monotone and no less
        # than the accuracy. More reliability is then never worse, so undecided devices are taken to run every student.
        closure = self.table.correct.copy()
        sets = np.arange(len(closure))
        for student in range(self.table.num_devices):
            closure = np.maximum(closure, closure[sets & ~(1 << student)])
        bound_table = SubsetTable(closure, self.table.samples)
        order = np.argsort(self.p_fail, kind="stable").tolist()
        best, value = list(students), self.value(students)
        chosen = [-1] * len(order)

        def search(depth: int, down: FloatArray) -> None:
            nonlocal best, value
            if depth == len(order):
                reached = self.value(chosen)
                if reached > value + _GAIN:
                    best, value = list(chosen), reached
                return
            optimistic = down.copy()
            for device in order[depth:]:
                optimistic[self.fits[device]] *= self.p_fail[device]
            if expected_accuracy(bound_table, 1 - optimistic) <= value + _GAIN:
                return
            device = order[depth]
            for student in self.options[device]:
                following = down.copy()
                if student >= 0:
                    following[student] *= self.p_fail[device]
                chosen[device] = student
                search(depth + 1, following)
            chosen[device] = -1

        search(0, np.ones(self.table.num_devices))
        return best
