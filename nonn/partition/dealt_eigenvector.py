"""Dealt eigenvector partitioning: correlated filters are spread over the parts, so that every part has some of each.

The clusters are those of balanced eigenvector partitioning with the same seed. Each is then dealt out over the parts:
the filters with the heaviest edges first, each to the part that has the fewest of this cluster, then the smallest part,
then the one whose filters have the least edge weight so far. Parts then differ by at most one filter, in each cluster
and in total, and the activity of the filters is also divided evenly.

If a part is a cluster, a concept is lost with its device; if it has a piece of every cluster, none is
(anti-clustering). Whether a small student learns such a part as easily is a separate question: train both.

Limits: with fewer filters in a cluster than there are parts, some parts get none of it. Filters without an edge are
dealt like the others, since balanced eigenvector partitioning assigns each of them to a cluster.

Reference: Späth 1986, "Anticlustering: maximizing the variance criterion", for the aim; the rule is new here.
"""

from __future__ import annotations

import numpy as np

from nonn.partition import balanced_eigenvector
from nonn.partition.graph import FilterGraph
from nonn.partition.partition import Partition

__all__ = ["partition"]


def partition(graph: FilterGraph, parts: int, seed: int) -> Partition:
    """Cuts the graph into parts of equal size (± 1), each with an equal share (± 1) of every eigenvector cluster.

    Args:
        graph: filter graph of C filters; may be disconnected and have filters without an edge.
        parts: M, from 1 to C.
        seed: seed of the clusters; not negative.

    Raises:
        PartitionError: fewer than one part, or more parts than filters.
    """
    clusters = balanced_eigenvector.partition(graph, parts, seed).parts
    degree = graph.weights.sum(axis=1)
    members: list[list[int]] = [[] for _ in range(parts)]
    carried = np.zeros(parts)  # edge weight of each part's filters
    for cluster in clusters:
        held = [0] * parts
        for index in sorted(cluster, key=lambda c: (-degree[c], c)):
            part = min(range(parts), key=lambda j: (held[j], len(members[j]), carried[j]))
            members[part].append(index)
            held[part] += 1
            carried[part] += degree[index]
    return Partition(parts=tuple(map(tuple, members)), num_filters=graph.num_filters, method="dealt-eigenvector")
