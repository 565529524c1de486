"""Random partitioning: the control for every other cut.

All filters are shuffled and cut into parts whose sizes differ by at most 1. The graph is not used.
"""

from __future__ import annotations

import numpy as np

from nonn.partition.graph import FilterGraph
from nonn.partition.partition import Partition, check_parts

__all__ = ["partition"]


def partition(graph: FilterGraph, parts: int, seed: int) -> Partition:
    """Cuts C filters at random.

    Args:
        graph: only its number of filters is used.
        parts: M, from 1 to C.
        seed: seed of the shuffle; not negative.

    Raises:
        PartitionError: fewer than one part, or more parts than filters.
    """
    check_parts(graph.num_filters, parts)
    shuffled = np.random.default_rng(seed).permutation(graph.num_filters)
    chunks = tuple(tuple(chunk.tolist()) for chunk in np.array_split(shuffled, parts))
    return Partition(parts=chunks, num_filters=graph.num_filters, method="random")
