"""Quality of a cut of the filters, before any student is trained.

Four measures that conflict: equal sizes keep devices alike, a low normalised cut and a high modularity keep connected
filters together, and kept correlation measures the same on the activations themselves, whichever graph was cut. None of
them is accuracy: when a part consists of correlated filters, a concept is lost with its device, so the study measures
accuracy.

Dropped filters (NoNN's rule prunes) are in the graph but in no part: their edges are cut, their correlation is lost,
and for modularity each is a separate community.

References: Shi, Malik 2000 (normalised cut); Newman 2004 (weighted modularity).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.partition.graph import FilterGraph
from nonn.partition.partition import Partition

__all__ = ["Measures", "measure"]


@dataclass(frozen=True)
class Measures:
    """Quality of a partition.

    Attributes:
        sizes: filters of each part [M].
        num_dropped: filters in no part.
        balance: largest ÷ smallest part; 1 is balanced.
        normalised_cut: Σ over parts of the weight of edges that leave the part ÷ the weight of all its edge ends, in
            [0, M]; a part without edges adds 0.
        modularity: of the weighted graph at resolution 1, in [−½, 1]; 0 for a graph without edges.
        kept_correlation: share of the summed |correlation| of all pairs of filters that is inside parts, in [0, 1]; 1
            where there is none to lose.
    """

    sizes: tuple[int, ...]
    num_dropped: int
    balance: float
    normalised_cut: float
    modularity: float
    kept_correlation: float


def measure(partition: Partition, graph: FilterGraph, correlation: NDArray[np.float64]) -> Measures:
    """Measures a partition on the graph it was cut from, and on the correlation of the filters.

    Args:
        partition: parts of C filters.
        graph: graph of the same filters.
        correlation: absolute correlation of the same filters [C, C], from ``nonn.partition.graph.correlation``; the
            diagonal is ignored.

    Raises:
        ShapeError: the three have different numbers of filters.
    """
    num_filters = partition.num_filters
    if graph.num_filters != num_filters or correlation.shape != (num_filters, num_filters):
        raise ShapeError(
            f"the partition has {num_filters} filters, the graph {graph.num_filters} and the correlation "
            f"is {list(correlation.shape)}: all three must come from the same teacher"
        )
    label = np.full(num_filters, -1)
    for number, part in enumerate(partition.parts):
        label[list(part)] = number
    together = (label[:, None] == label[None, :]) & (label[:, None] >= 0) & ~np.eye(num_filters, dtype=bool)
    degree = graph.weights.sum(axis=1)
    total = degree.sum()
    inner_degree = (graph.weights * together).sum(axis=1)  # of each filter, to filters of its own part
    cut = 0.0
    squares = float((degree[label < 0] ** 2).sum())
    for part in partition.parts:
        volume = degree[list(part)].sum()
        squares += float(volume**2)
        if volume > 0:
            cut += float(1.0 - inner_degree[list(part)].sum() / volume)
    pairs = correlation * ~np.eye(num_filters, dtype=bool)
    return Measures(
        sizes=partition.sizes,
        num_dropped=len(partition.dropped),
        balance=max(partition.sizes) / min(partition.sizes),
        normalised_cut=cut,
        modularity=float(inner_degree.sum() / total - squares / total**2) if total > 0 else 0.0,
        kept_correlation=float((pairs * together).sum() / pairs.sum()) if pairs.any() else 1.0,
    )
