"""Balanced eigenvector partitioning: correlated filters share a part, and all parts have the same size.

1. Normalised adjacency N = D^-½ W D^-½ of the filters that have an edge; the leading eigenvectors of N are the last
   of the normalised Laplacian I − N.
2. Embedding: the trivial eigenvector D^½1 and the M − 1 leading non-trivial ones, each filter's row scaled to norm 1.
   With the trivial one as a coordinate, a row is (1, u_2, …, u_M) of the random walk's eigenvectors up to its
   length: independent of how active a filter is, never zero, and for M = 2 still ordered along u_2.
3. Balanced k-means: assign all filters at once by minimum-cost assignment to slots (each part has as many slots as
   its size), then move the centres to the means, until nothing changes. Both steps lower the sum of squared
   distances, so it ends. The best of several seeded starts (k-means++) wins.
4. Filters without an edge (never active, or dropped by the NoNN graph's percentile) belong to no cluster; they are
   dealt to the smallest parts. Since the others are balanced first, no part consists only of such filters while there
   are enough others.

Every filter is in a part and sizes differ by at most 1. Parts are ordered by their lowest filter.

Limits: eight parts of 256 filters take 0.1 s, of 640 1 s, of 2,048 half a minute on one core; nearly all of it is the
assignment, which is cubic in C (the dense eigenvectors take half a second of the last). k-means finds a good cut, not
always the best one. A graph of more components than parts has no unique leading eigenvectors, so
there the cut may differ between LAPACK builds.

References: Jeong, Park, Yang 2021 name the method and its aim ("modified from Eigenvector-based partitioning, to
preserve the correlation between filters as much as possible while keeping the consistent number of filters"). Its
exact steps were not available to us; these are ours, after Ng, Jordan, Weiss 2001 (spectral clustering) and
Malinen, Fränti 2014 (balanced k-means by assignment).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment

from nonn.errors import PartitionError
from nonn.partition.graph import FilterGraph
from nonn.partition.partition import Partition, check_parts

__all__ = ["partition"]

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]

_RESTARTS = 10
_MAX_ROUNDS = 100  # it converges in 10 to 40; the bound only stops cycles of ties by rounding


def partition(graph: FilterGraph, parts: int, seed: int, sizes: Sequence[int] | None = None) -> Partition:
    """Cuts the graph into parts of equal size (± 1), or of given sizes, along its leading eigenvectors.

    Args:
        graph: filter graph of C filters; may be disconnected and have filters without an edge.
        parts: M, from 1 to C.
        seed: seed of the starts of k-means; not negative.
        sizes: filters of each part [M], positive, with sum C; parts then keep this order.

    Raises:
        PartitionError: fewer than one part, more parts than filters, or sizes that do not add up.
    """
    check_parts(graph.num_filters, parts)
    if sizes is not None:
        return _partition_to_sizes(graph, parts, seed, sizes)
    tied = np.flatnonzero(graph.weights.any(axis=1))
    members: list[list[int]] = [[] for _ in range(parts)]
    if tied.size:
        num_clusters = min(parts, tied.size)
        embedding = _embed(graph.weights[np.ix_(tied, tied)], num_clusters)
        for index, label in zip(tied, _balanced_kmeans(embedding, num_clusters, seed), strict=True):
            members[label].append(int(index))
    for index in np.setdiff1d(np.arange(graph.num_filters), tied):
        min(members, key=len).append(int(index))
    ordered = sorted((sorted(part) for part in members), key=lambda part: part[0])
    return Partition(parts=tuple(map(tuple, ordered)), num_filters=graph.num_filters, method="balanced-eigenvector")


def _partition_to_sizes(graph: FilterGraph, parts: int, seed: int, sizes: Sequence[int]) -> Partition:
    """The same with unequal parts: a slot for every filter of a part, part by part."""
    if len(sizes) != parts or min(sizes) < 1 or sum(sizes) != graph.num_filters:
        raise PartitionError(f"sizes {list(sizes)}: need {parts} positive numbers with sum {graph.num_filters}")
    tied = np.flatnonzero(graph.weights.any(axis=1))
    # Each part reserves room for filters without an edge in proportion to its size, but keeps one with an edge if any.
    room = np.array(_share_room(len(tied), sizes))
    members: list[list[int]] = [[] for _ in range(parts)]
    used = np.flatnonzero(room)
    if tied.size:
        embedding = _embed(graph.weights[np.ix_(tied, tied)], len(used))
        for index, label in zip(tied, _balanced_kmeans(embedding, len(used), seed, room[used]), strict=True):
            members[used[label]].append(int(index))
    loose = iter(np.setdiff1d(np.arange(graph.num_filters), tied).tolist())
    for part, size in zip(members, sizes, strict=True):
        part.extend(next(loose) for _ in range(size - len(part)))
    return Partition(parts=tuple(map(tuple, members)), num_filters=graph.num_filters, method="balanced-eigenvector")


def _share_room(total: int, sizes: Sequence[int]) -> list[int]:
    """Divides a number, at most the sum of the sizes, over parts in proportion to their sizes, none above its size."""
    quota = np.asarray(sizes) * (total / sum(sizes))
    room = np.floor(quota + 1e-9).astype(int)
    for part in np.argsort(room - quota, kind="stable")[: total - int(room.sum())]:
        room[part] += 1
    return [int(value) for value in room]


def _embed(weights: Matrix, num_vectors: int) -> Matrix:
    """Spectral embedding [C, num_vectors], rows of norm 1; every filter must have an edge."""
    root_degree = np.sqrt(weights.sum(axis=1))
    adjacency = weights / root_degree[:, None] / root_degree[None, :]
    trivial = root_degree / np.linalg.norm(root_degree)
    vectors = trivial[:, None]
    if num_vectors > 1:
        # Eigenvalues of N lie in [−1, 1]: taking 3 from the trivial one's 1 puts it below all others, also where a
        # disconnected graph has the eigenvalue 1 several times and LAPACK could return any mixture.
        deflated = adjacency - 3.0 * np.outer(trivial, trivial)
        size = len(weights)
        _, leading = eigh(deflated, subset_by_index=[size - num_vectors + 1, size - 1])
        # Signs stay as LAPACK returns them: only distances are used, which are the same for either sign.
        vectors = np.hstack([vectors, leading])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _balanced_kmeans(points: Matrix, num_clusters: int, seed: int, sizes: NDArray[Any] | None = None) -> Labels:
    """Labels [C] of clusters with a low sum of squared distances to their means.

    Sizes are those given, or differ by at most 1.
    """
    rng = np.random.default_rng(seed)
    best, lowest = np.zeros(len(points), dtype=np.intp), math.inf
    for _ in range(_RESTARTS if num_clusters > 1 else 1):
        centres = _spread_centres(points, num_clusters, rng)
        labels = np.full(len(points), -1, dtype=np.intp)
        for _ in range(_MAX_ROUNDS):
            previous, labels = labels, _assign(_squared_distances(points, centres), sizes)
            if np.array_equal(previous, labels):
                break
            centres = np.stack([points[labels == cluster].mean(axis=0) for cluster in range(num_clusters)])
        objective = float(((points - centres[labels]) ** 2).sum())
        if objective < lowest:
            best, lowest = labels, objective
    return best


def _spread_centres(points: Matrix, num_clusters: int, rng: np.random.Generator) -> Matrix:
    """k-means++ (Arthur, Vassilvitskii 2007): each centre [num_clusters, D] is drawn far from those before."""
    chosen = [int(rng.integers(len(points)))]
    nearest = np.full(len(points), math.inf)
    while len(chosen) < num_clusters:
        nearest = np.minimum(nearest, _squared_distances(points, points[chosen[-1:]])[:, 0])
        nearest[chosen] = 0.0
        total = nearest.sum()
        chance = nearest / total if total > 0 else None  # None: all points are equal, so any is a centre
        chosen.append(int(rng.choice(len(points), p=chance)))
    return points[chosen]


def _squared_distances(points: Matrix, centres: Matrix) -> Matrix:
    """Squared distances [C, M] of points [C, D] from centres [M, D]."""
    lengths = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)[None, :]
    return np.asarray(np.maximum(lengths - 2.0 * points @ centres.T, 0.0))


def _assign(costs: Matrix, sizes: NDArray[Any] | None = None) -> Labels:
    """Cheapest labels [C] for costs [C, M] with ⌊C/M⌋ or ⌈C/M⌉ filters a part, or with the sizes given [M].

    Every part has ⌈C/M⌉ slots. If C is no multiple of M, dummies occupy the last slot of the smaller parts; these parts
    are chosen by cost, and none loses more than one slot.
    """
    num_points, num_clusters = costs.shape
    if sizes is not None:
        owner = np.repeat(np.arange(num_clusters), sizes)
        return np.asarray(owner[linear_sum_assignment(costs[:, owner])[1]], dtype=np.intp)
    size = -(-num_points // num_clusters)
    slots = np.repeat(costs, size, axis=1)  # slot s belongs to part s // size
    dummies = np.full((num_clusters * size - num_points, num_clusters * size), math.inf)
    dummies[:, size - 1 :: size] = 0.0
    _, columns = linear_sum_assignment(np.vstack([slots, dummies]))
    return np.asarray(columns[:num_points] // size, dtype=np.intp)
