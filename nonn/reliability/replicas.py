"""Accuracy of clusters in which several devices run each student, for any number of devices. NumPy only.

Replicas give the same answer, so only the students matter that at least one device answers for. The table of the N
students therefore gives exact figures for N · R devices, 64 from sixteen students and four replicas: subsets of devices
are counted, not enumerated. With P(x) = Σ_{j<R} C(R, j) x^j, the sets of devices with k failures for which a given set
of s students still answers number [x^k] P(x)^s x^{R(N − s)}.

Device i runs student i modulo N, as in the simulator.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.reliability.subsets import members, membership
from nonn.reliability.table import FailureRow, SubsetTable

__all__ = ["failures_with_replicas", "replica_weights"]


def failures_with_replicas(table: SubsetTable, replicas: int) -> tuple[FailureRow, ...]:
    """Accuracy against failed devices over all subsets of N · R devices, exact, for 0 to N · R − 1 failed devices.

    Args:
        table: accuracy of all subsets of students.
        replicas: devices R of each student.

    Raises:
        ShapeError: less than one replica.
    """
    if replicas < 1:
        raise ShapeError(f"{replicas} replicas: each student needs at least one device")
    n = table.num_devices
    total = n * replicas
    sizes, accuracy = membership(n).sum(axis=1), table.accuracy
    of_size = [np.flatnonzero(sizes == s) for s in range(n + 1)]
    means = [float(accuracy[masks].mean()) for masks in of_size]
    ways = _ways(n, replicas)
    rows = []
    for failed in range(total):
        counts = [comb(n, s) * ways[s].get(failed, 0) for s in range(n + 1)]
        reached = np.concatenate([of_size[s] for s in range(n + 1) if counts[s]])
        # Python's integers: C(64, 32) exceeds what a float resolves.
        mean = sum(count / comb(total, failed) * mean for count, mean in zip(counts, means, strict=True))
        values = accuracy[reached]
        worst = int(reached[values == values.min()].min())
        rows.append(
            FailureRow(
                failed=failed,
                subsets=comb(total, failed),
                mean=float(min(1.0, mean)),
                worst=float(values.min()),
                best=float(values.max()),
                worst_subset=_devices(members(worst), n, total - failed) if failed else (),
            )
        )
    return tuple(rows)


def replica_weights(num_devices: int, replicas: int) -> Iterator[NDArray[np.float64]]:
    """Weights of the mean over all subsets of N · R devices, for 0 to N · R − 1 failed devices, one at a time [2^N].

    Args:
        num_devices: students N.
        replicas: devices R of each.
    """
    total, sizes = num_devices * replicas, membership(num_devices).sum(axis=1)
    ways = _ways(num_devices, replicas)
    for failed in range(total):
        sets = comb(total, failed)
        yield np.array([of_size.get(failed, 0) / sets for of_size in ways])[sizes]


def _ways(n: int, replicas: int) -> list[dict[int, int]]:
    """Sets of failed devices that leave exactly 0 … N given students [N + 1], by number of failures."""
    of_one = [comb(replicas, failed) for failed in range(replicas)]
    power, found = [1], []
    for students in range(n + 1):
        first = replicas * (n - students)
        found.append({first + failed: count for failed, count in enumerate(power)})
        grown = [0] * (len(power) + replicas - 1)
        for failed, count in enumerate(power):
            for more, ways in enumerate(of_one):
                grown[failed + more] += count * ways
        power = grown
    return found


def _devices(students: tuple[int, ...], n: int, count: int) -> tuple[int, ...]:
    """The first of the sets of devices that answer for exactly these students: one for each, then further replicas."""
    every = [student + n * copy for copy in range(-(-count // max(1, len(students)))) for student in students]
    return tuple(sorted(every[:count]))
