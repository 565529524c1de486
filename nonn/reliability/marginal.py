"""Importance of each device under any failure law: exact sums over the table of subsets.

``shapley_values`` and ``pair_losses`` need no law; they come from ``nonn.reliability.importance`` and are also in the
report of a bundle.
"""

from __future__ import annotations

import numpy as np

from nonn.reliability.importance import pair_losses, shapley_values
from nonn.reliability.laws.base import FloatArray
from nonn.reliability.subsets import all_masks
from nonn.reliability.table import SubsetTable

__all__ = ["marginal_values", "pair_losses", "shapley_values"]


def marginal_values(table: SubsetTable, probability: FloatArray) -> FloatArray:
    """Expected accuracy with a device forced up, less that with it forced down.

    Args:
        table: accuracy of each subset.
        probability: probability of each subset under a failure law [2^N].

    Returns:
        [N]; the Birnbaum importance where devices fail independently.
    """
    masks, accuracy = all_masks(table.num_devices), table.accuracy
    gains = [accuracy[masks | 1 << i] - accuracy[masks & ~(1 << i)] for i in range(table.num_devices)]
    return np.array([probability @ gain for gain in gains])
