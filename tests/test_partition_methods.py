"""The partitioners beside balanced eigenvector partitioning and Louvain: what each promises of its parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import SpectralClustering

from nonn.partition import (
    Partition,
    balanced_eigenvector,
    dealt_eigenvector,
    metis,
    parts_of_labels,
    random,
    spectral,
)
from nonn.partition.graph import FilterGraph
from nonn.partition.measures import measure
from tests.graphs import as_sets, cliques, planted, random_graph

graphs = st.builds(random_graph, st.integers(1, 24), st.sampled_from([0.0, 0.1, 0.4, 1.0]), st.integers(0, 500))


def cut_weight(partition: Partition, graph: FilterGraph) -> float:
    label = np.empty(graph.num_filters, dtype=int)
    for number, part in enumerate(partition.parts):
        label[list(part)] = number
    return float(graph.weights[label[:, None] != label[None, :]].sum() / 2)


class TestDealtEigenvector:
    @given(graph=graphs, share=st.floats(0, 1), seed=st.integers(0, 5))
    @settings(deadline=None, max_examples=60)
    def test_every_cluster_is_spread_evenly_and_parts_are_equal(
        self, graph: FilterGraph, share: float, seed: int
    ) -> None:
        parts = 1 + round(share * (graph.num_filters - 1))
        made = dealt_eigenvector.partition(graph, parts, seed)
        assert max(made.sizes) - min(made.sizes) <= 1
        for cluster in balanced_eigenvector.partition(graph, parts, seed).parts:
            held = [len(set(part) & set(cluster)) for part in made.parts]
            assert max(held) - min(held) <= 1

    @pytest.mark.parametrize("seed", range(12))
    def test_clusters_that_do_not_divide_by_the_parts_are_spread_evenly_too(self, seed: int) -> None:
        # A few filters carry most weight, so that the balance of weights pulls against that of the clusters.
        rng = np.random.default_rng(seed)
        strength = rng.exponential(size=18) ** 2
        weights = np.triu(np.outer(strength, strength) * rng.random((18, 18)), 1)
        graph = FilterGraph(weights + weights.T, kind="test")
        made = dealt_eigenvector.partition(graph, 5, 0)
        for cluster in balanced_eigenvector.partition(graph, 5, 0).parts:
            held = [len(set(part) & set(cluster)) for part in made.parts]
            assert max(held) - min(held) <= 1

    def test_every_part_has_a_filter_of_every_planted_block(self) -> None:
        graph, blocks = planted([8] * 4)
        for part in dealt_eigenvector.partition(graph, 4, 0).parts:
            assert [len(set(part) & block) for block in blocks] == [2] * 4

    def test_strong_filters_are_shared_out(self) -> None:
        # Two filters of each cluster carry nearly all weight, unequally: no part gets the heavier one twice.
        weights = 0.01 * (np.ones((16, 16)) - np.eye(16))
        strength = np.repeat([1.0, 0.5, 0.1], [1, 1, 6])
        for block in (slice(0, 8), slice(8, 16)):
            weights[block, block] = np.outer(strength, strength) * (1 - np.eye(8))
        graph = FilterGraph(weights, kind="test")
        degree = weights.sum(axis=1)
        carried = [degree[list(part)].sum() for part in dealt_eigenvector.partition(graph, 2, 0).parts]
        assert max(carried) / min(carried) < 1.01


class TestMetis:
    @given(graph=graphs, share=st.floats(0, 1), seed=st.integers(0, 5))
    @settings(deadline=None, max_examples=80)
    def test_every_filter_is_in_a_part_and_no_part_is_empty(self, graph: FilterGraph, share: float, seed: int) -> None:
        parts = 1 + round(share * (graph.num_filters - 1))
        made = metis.partition(graph, parts, seed)
        assert made.num_parts == parts
        assert made.dropped == ()

    @pytest.mark.parametrize("sizes", [[8, 8], [6, 6, 6, 6], [16] * 8])
    def test_planted_parts_are_found(self, sizes: list[int]) -> None:
        graph, truth = planted(sizes)
        assert as_sets(metis.partition(graph, len(sizes), 0)) == truth

    def test_weights_decide_and_not_the_number_of_edges(self) -> None:
        # Cliques of 1,000 times lighter edges between all: unweighted, every balanced cut is as good.
        graph, truth = planted([8, 8, 8, 8], noise=1e-3)
        assert as_sets(metis.partition(graph, 4, 3)) == truth

    def test_a_wide_dense_graph_is_cut_lighter_than_at_random_and_nearly_balanced(self) -> None:
        graph = random_graph(256, 1.0, seed=2)
        made = metis.partition(graph, 8, 0)
        assert cut_weight(made, graph) < cut_weight(random.partition(graph, 8, 0), graph)
        assert measure(made, graph, graph.weights).balance < 1.15

    @pytest.mark.parametrize("seed", range(4))
    def test_few_filters_a_part_are_still_balanced(self, seed: int) -> None:
        assert max(metis.partition(random_graph(26, 0.4, seed), 16, 0).sizes) <= 4

    def test_a_seed_is_looked_at(self) -> None:
        graph = random_graph(60, 0.5, seed=3)
        assert len({metis.partition(graph, 4, seed).parts for seed in range(5)}) > 1


class TestSpectral:
    @given(graph=graphs, share=st.floats(0, 1), seed=st.integers(0, 5))
    @settings(deadline=None, max_examples=40)
    def test_every_filter_is_in_a_part_and_no_part_is_empty(self, graph: FilterGraph, share: float, seed: int) -> None:
        parts = 1 + round(share * (graph.num_filters - 1))
        made = spectral.partition(graph, parts, seed)
        assert made.num_parts == parts
        assert made.dropped == ()

    @pytest.mark.parametrize("sizes", [[12, 4], [9, 3, 6, 6], [4, 8, 4, 16]])
    def test_planted_parts_are_found_however_unequal(self, sizes: list[int]) -> None:
        graph, truth = planted(sizes, noise=0.1)
        assert as_sets(spectral.partition(graph, len(sizes), 0)) == truth

    def test_parts_are_those_of_scikit_learn_on_a_connected_graph(self) -> None:
        graph, _ = planted([10, 10, 10], noise=0.6)
        labels = SpectralClustering(3, affinity="precomputed", random_state=1).fit_predict(graph.weights)
        wanted = {frozenset(np.flatnonzero(labels == k).tolist()) for k in range(3)}
        assert as_sets(spectral.partition(graph, 3, 1)) == wanted

    def test_a_seed_is_looked_at(self) -> None:
        graph = random_graph(60, 0.5, seed=3)
        assert len({spectral.partition(graph, 6, seed).parts for seed in range(5)}) > 1

    def test_components_of_a_disconnected_graph_are_not_mixed_and_filters_without_an_edge_fill_up(self) -> None:
        made = spectral.partition(cliques([6, 4, 3], isolated=3), 3, 0)
        assert {frozenset(p) - {13, 14, 15} for p in made.parts} == {
            frozenset(range(6)),
            frozenset(range(6, 10)),
            frozenset(range(10, 13)),
        }
        assert sorted(made.sizes) == [5, 5, 6]


class TestRandom:
    def test_parts_are_equal_and_another_seed_cuts_otherwise(self) -> None:
        graph = cliques([50])
        made = [random.partition(graph, 8, seed) for seed in range(4)]
        assert all(sorted(p.sizes) == [6] * 6 + [7] * 2 for p in made)
        assert len({p.parts for p in made}) == 4

    def test_the_graph_is_not_looked_at(self) -> None:
        assert random.partition(cliques([30]), 4, 7).parts == random.partition(random_graph(30, 0.3, 1), 4, 7).parts

    def test_two_filters_share_a_part_as_often_as_chance_has_it(self) -> None:
        graph = cliques([16])
        together = [any({0, 1} <= set(p) for p in random.partition(graph, 4, s).parts) for s in range(600)]
        assert np.mean(together) == pytest.approx(3 / 15, abs=0.05)


def test_empty_labels_take_a_filter_from_the_largest_part() -> None:
    assert parts_of_labels(np.array([2, 2, 2, 2, 0]), 4) == ((0, 1), (2,), (3,), (4,))
