"""What every device is worth: sums over the table of answering sets, exact. NumPy only.

``shapley_values`` share out the accuracy of all devices fairly, whatever fails; ``pair_losses`` say which two must not
fail together. What hangs on a device under independent failures is ``SubsetTable.importance``.

Limits: as many devices as ``nonn.reliability.subsets`` enumerates.
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.subsets import SubsetTable, all_masks, membership

__all__ = ["pair_losses", "shapley_values"]

FloatArray = NDArray[np.float64]


def shapley_values(table: SubsetTable) -> FloatArray:
    """Mean gain in accuracy when a device joins, over all orders in which devices can join.

    Returns:
        Accuracy of each device [N]; their sum is the accuracy of all less that of none.

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
    """Accuracy when exactly two devices are gone [N, N]; on the diagonal when only that one is."""
    everyone = len(table.correct) - 1
    bits = 1 << np.arange(table.num_devices)
    result: FloatArray = table.accuracy[everyone & ~(bits[:, None] | bits)]
    return result
