"""Filter graphs whose best parts are known."""

from __future__ import annotations

import numpy as np

from nonn.partition import Partition
from nonn.partition.graph import FilterGraph


def planted(sizes: list[int], noise: float = 0.3, seed: int = 0) -> tuple[FilterGraph, set[frozenset[int]]]:
    """A graph with strong blocks, filters shuffled, and the blocks."""
    rng = np.random.default_rng(seed)
    block = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    weights = (block[:, None] == block[None, :]) + noise * rng.random((len(block), len(block)))
    weights = np.triu(weights, 1)
    truth = {frozenset(np.flatnonzero(block == b).tolist()) for b in range(len(sizes))}
    return FilterGraph(weights + weights.T, kind="planted"), truth


def random_graph(num_filters: int, density: float, seed: int) -> FilterGraph:
    rng = np.random.default_rng(seed)
    weights = rng.random((num_filters, num_filters)) * (rng.random((num_filters, num_filters)) < density)
    weights = np.triu(weights, 1)
    return FilterGraph(weights + weights.T, kind="random")


def cliques(sizes: list[int], isolated: int = 0) -> FilterGraph:
    """Separate cliques, one after the other, then filters without an edge."""
    block = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), len(sizes) + np.arange(isolated)])
    weights = (block[:, None] == block[None, :]).astype(np.float64)
    np.fill_diagonal(weights, 0.0)
    return FilterGraph(weights, kind="cliques")


def as_sets(partition: Partition) -> set[frozenset[int]]:
    return {frozenset(part) for part in partition.parts}
