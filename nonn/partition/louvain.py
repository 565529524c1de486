"""NoNN's rule: Louvain communities of the filter graph become the students' parts.

1. Louvain communities at γ = 1/0.7. NoNN's code passes ``resolution = 0.7`` to python-louvain before 0.16, which
   multiplies the edges by it where networkx multiplies the null model: 0.7 there is 1/0.7 = 1.43 here.
2. Communities of one filter are pooled and dropped: on NoNN's graph these are the low-activity filters, which no
   student learns.
3. The M largest communities seed the parts. Each remaining community, largest first, goes whole to the part that is
   then the smallest.

The result has the properties of the paper's baseline: filters are dropped, sizes differ and another seed gives another
cut. On the published WRN-40-4 graph, communities of 35, 24, 22, 22, 21, 20, 19, 14 and 2 filters and 77 single ones
become eight parts of 35, 24, 22, 22, 21, 20, 19 and 16, 2.2 times unequal. Intended for
``graph.kind = "nonn"``; a dense graph has no communities at this resolution, unless its filters form clear groups.

Deviations from the published code, which

- discards the largest cluster after pooling. On NoNN's graph that is the pool; elsewhere it would be the most important
  community, so here always the pool is dropped and never a real community;
- indexes clusters by their size, which merges communities of equal size. Here they stay separate, ordered by their
  lowest filter;
- needs as many communities as students. Here the largest are halved (by balanced eigenvector partitioning, so that
  the halves stay correlated) until there are enough.

Reference: Bhardwaj et al. 2019, arXiv 1907.11804; Blondel et al. 2008 (Louvain).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import networkx as nx
import numpy as np

from nonn.errors import PartitionError
from nonn.partition import balanced_eigenvector
from nonn.partition.graph import FilterGraph
from nonn.partition.partition import Partition, check_parts

__all__ = ["RESOLUTION", "communities_to_parts", "partition"]

RESOLUTION = 1 / 0.7

Community = tuple[int, ...]


def partition(graph: FilterGraph, parts: int, seed: int) -> Partition:
    """Cuts the graph by NoNN's rule.

    Args:
        graph: filter graph of C filters.
        parts: M, from 1 to the number of filters that share a community with another.
        seed: seed of Louvain's order of visits and of the halving; not negative.

    Raises:
        PartitionError: fewer than one part, or more parts than filters remain after dropping the singletons.
    """
    check_parts(graph.num_filters, parts)
    network = nx.from_numpy_array(graph.weights)
    communities = nx.community.louvain_communities(network, weight="weight", resolution=RESOLUTION, seed=seed)

    def halve(community: Community) -> tuple[Community, Community]:
        inner = FilterGraph(graph.weights[np.ix_(community, community)], kind=graph.kind)
        halves = balanced_eigenvector.partition(inner, 2, seed).parts
        first, second = (tuple(community[i] for i in half) for half in halves)
        return first, second

    chosen, dropped = communities_to_parts(communities, parts, halve)
    return Partition(parts=chosen, num_filters=graph.num_filters, method="louvain", dropped=dropped)


def communities_to_parts(
    communities: Iterable[Collection[int]],
    parts: int,
    halve: Callable[[Community], tuple[Community, Community]],
) -> tuple[tuple[Community, ...], Community]:
    """Steps 2 and 3 of the rule, without Louvain's randomness.

    Args:
        communities: disjoint sets of filter indices, in any order.
        parts: M.
        halve: splits a community of two or more filters; called only while there are fewer communities than parts.

    Returns:
        The parts, largest seed first, and the dropped filters; all ascending.

    Raises:
        PartitionError: fewer filters than parts remain after dropping the singletons.
    """
    members = [tuple(sorted(community)) for community in communities]
    dropped = tuple(sorted(community[0] for community in members if len(community) == 1))
    kept = [community for community in members if len(community) > 1]
    left = sum(map(len, kept))
    if left < parts:
        raise PartitionError(
            f"partition.parts = {parts}: only {left} filters share a community with another "
            f"({len(dropped)} are single and dropped); use graph.kind = 'nonn' with a lower graph.percentile, "
            "fewer parts or partition.method = 'balanced-eigenvector'"
        )
    kept.sort(key=_largest_first)
    while len(kept) < parts:
        kept = sorted([*kept[1:], *halve(kept[0])], key=_largest_first)
    chosen = kept[:parts]
    for community in kept[parts:]:
        smallest = min(range(parts), key=lambda part: len(chosen[part]))
        chosen[smallest] += community
    return tuple(tuple(sorted(part)) for part in chosen), dropped


def _largest_first(community: Community) -> tuple[int, int]:
    """Sort key of communities: size, then lowest filter, so that equal sizes have a fixed order."""
    return -len(community), min(community)
