"""What every device is worth: sums over the table of answering sets, exact.

``shapley_values`` share out the accuracy of all devices fairly, whatever fails; ``marginal_values`` say what hangs on a
device under a failure law; ``pair_losses`` say which two must not fail together.
"""

from __future__ import annotations

from math import factorial

import numpy as np

from nonn.subsets import SubsetTable, all_masks, membership
from nonn_sim.laws.base import FloatArray

__all__ = ["marginal_values", "pair_losses", "shapley_values"]


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


def marginal_values(table: SubsetTable, probability: FloatArray) -> FloatArray:
    """Expected accuracy with a device forced up, less that with it forced down.

    Args:
        table: accuracy of each answering set.
        probability: of each answering set under a failure law [2^N].

    Returns:
        [N]; the Birnbaum importance where devices fail independently.
    """
    masks, accuracy = all_masks(table.num_devices), table.accuracy
    gains = [accuracy[masks | 1 << i] - accuracy[masks & ~(1 << i)] for i in range(table.num_devices)]
    return np.array([probability @ gain for gain in gains])


def pair_losses(table: SubsetTable) -> FloatArray:
    """Accuracy when exactly two devices are gone [N, N]; on the diagonal when only that one is."""
    everyone = len(table.correct) - 1
    bits = 1 << np.arange(table.num_devices)
    result: FloatArray = table.accuracy[everyone & ~(bits[:, None] | bits)]
    return result
