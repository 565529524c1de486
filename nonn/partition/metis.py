"""METIS: multilevel recursive bisection of the filter graph, balanced, with few and light edges cut.

METIS shrinks the graph by merging heavy edges, bisects the small graph and refines the cut while it grows back. It
minimises the weight of the cut itself, whereas the spectral methods minimise it relative to the parts' volume, and it
keeps the balance by construction. It is used in recursive bisection mode, since the direct k-way mode leaves parts
empty with few filters per part.

Sizes differ by a few filters: METIS balances each bisection within 0.1 % or a filter, and the bisections add up.
Edge weights become whole numbers, at 1e-6 of the heaviest; a lighter edge becomes one such unit. Filters without an
edge are placed by the balance.

Limits: METIS is a heuristic; another seed gives another cut. Eight parts of 2,048 filters take 1 s.

Source: Karypis, Kumar 1998, "A fast and high quality multilevel scheme for partitioning irregular graphs"; through
pymetis.
"""

from __future__ import annotations

import numpy as np
from pymetis import CSRAdjacency, Options, part_graph

from nonn.partition.graph import FilterGraph
from nonn.partition.partition import Partition, check_parts, parts_of_labels

__all__ = ["partition"]

_UNITS = 1_000_000  # whole-number weight of the heaviest edge; METIS sums them in 64 bits


def partition(graph: FilterGraph, parts: int, seed: int) -> Partition:
    """Cuts the graph with METIS.

    Args:
        graph: filter graph of C filters; may be disconnected and have filters without an edge.
        parts: M, from 1 to C.
        seed: seed of METIS; not negative.

    Raises:
        PartitionError: fewer than one part, or more parts than filters.
    """
    check_parts(graph.num_filters, parts)
    labels = np.arange(graph.num_filters) % parts
    rows, columns = np.nonzero(graph.weights)
    if 1 < parts < graph.num_filters and rows.size:
        weights = graph.weights[rows, columns] / graph.weights.max()
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=graph.num_filters))])
        cut = part_graph(
            parts,
            adjacency=CSRAdjacency(adj_starts=starts.tolist(), adjacent=columns.tolist()),
            eweights=np.maximum(np.rint(weights * _UNITS), 1).astype(np.int64).tolist(),
            recursive=True,
            options=Options(seed=seed),
        )
        labels = np.asarray(cut.vertex_part)
    return Partition(parts=parts_of_labels(labels, parts), num_filters=graph.num_filters, method="metis")
