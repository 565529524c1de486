"""Spectral clustering by scikit-learn: the normalised cut without balance.

The same graph and the same leading eigenvectors of the normalised Laplacian as balanced eigenvector partitioning, then
plain k-means: parts follow the clusters, however unequal they are. The difference to ``balanced-eigenvector`` is the
cost of the balance.

A graph of several components has no unique leading eigenvectors; an edge of 1e-6 of the mean edge between all filters
makes it connected. Filters without an edge belong to no cluster; they are dealt to the smallest parts. A part that
k-means leaves empty gets a filter from the largest.

Source: Shi, Malik 2000 (normalised cut); Pedregosa et al. 2011 (scikit-learn).
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import SpectralClustering
from sklearn.exceptions import ConvergenceWarning

from nonn.partition.graph import FilterGraph
from nonn.partition.partition import Partition, check_parts, parts_of_labels

__all__ = ["partition"]

_TIE = 1e-6


def partition(graph: FilterGraph, parts: int, seed: int) -> Partition:
    """Cuts the graph into clusters, one per part.

    Args:
        graph: filter graph of C filters; may be disconnected and have filters without an edge.
        parts: M, from 1 to C.
        seed: seed of the eigensolver's start and of k-means; not negative.

    Raises:
        PartitionError: fewer than one part, or more parts than filters.
    """
    check_parts(graph.num_filters, parts)
    tied = np.flatnonzero(graph.weights.any(axis=1))
    labels = np.full(graph.num_filters, -1)
    if tied.size <= parts or parts == 1:
        labels[tied] = np.arange(tied.size) % parts
    else:
        weights = graph.weights[np.ix_(tied, tied)]
        affinity = weights + _TIE * weights.mean()
        clustering = SpectralClustering(parts, affinity="precomputed", random_state=seed)
        with warnings.catch_warnings():
            # k-means sees filters with the same edges as one point; the empty parts are filled below.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels[tied] = clustering.fit_predict(affinity)
    for index in np.flatnonzero(labels < 0):
        labels[index] = np.bincount(labels[labels >= 0], minlength=parts).argmin()
    return Partition(parts=parts_of_labels(labels, parts), num_filters=graph.num_filters, method="spectral")
