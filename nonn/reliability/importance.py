"""Importance of each device: exact sums over the table of subsets. NumPy only.

``shapley_values`` divide the accuracy of all devices fairly, under no failure law; ``pair_losses`` give the accuracy
without each pair of devices. ``SubsetTable.importance`` is the accuracy lost if a device fails, under independent
failures.

Limits: as many devices as ``nonn.reliability.subsets`` enumerates.
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.subsets import all_masks, membership
from nonn.reliability.table import SubsetTable

__all__ = ["pair_losses", "shapley_values"]

FloatArray = NDArray[np.float64]


def shapley_values(table: SubsetTable) -> FloatArray:
    """Mean gain in accuracy when a device joins, over all orders in which devices can join.

    Returns:
        Share of accuracy of each device [N]; their sum is the accuracy of all devices less that of none.

    Source: Shapley 1953, "A value for n-person games".
    """
    n, accuracy = table.num_devices, table.accuracy
    masks, size = all_masks(n), membership(n).sum(axis=1)
    weight = np.array([factorial(s) * factorial(n - s - 1) / factorial(n) for s in range(n)])
    values = []
    for device in range(n):
        without = masks[masks >> device & 1 == 0]
        values.append(weight[size[without]] @ (accuracy[without | 1 << device] - accuracy[without]))
    return np.array(values)


def pair_losses(table: SubsetTable) -> FloatArray:
    """Accuracy when exactly two devices have failed [N, N]; on the diagonal when only that one has."""
    everyone = len(table.correct) - 1
    bits = 1 << np.arange(table.num_devices)
    result: FloatArray = table.accuracy[everyone & ~(bits[:, None] | bits)]
    return result
