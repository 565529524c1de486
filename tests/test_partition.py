"""Partitioners on graphs with a known answer, NoNN's rule without Louvain's randomness, and measures by hand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nonn.config import PartitionConfig
from nonn.documents import to_json
from nonn.errors import MissingExtraError, PartitionError, ShapeError
from nonn.partition import METHODS, Partition, balanced_eigenvector, load_partitioner, louvain, make_partition
from nonn.partition.graph import FilterGraph, co_activation_graph
from nonn.partition.louvain import communities_to_parts
from nonn.partition.measures import measure
from tests.graphs import as_sets, cliques, planted, random_graph

Array = NDArray[np.float64]


class TestBalancedEigenvector:
    @pytest.mark.parametrize("sizes", [[8, 8], [6, 6, 6, 6], [5, 5, 6], [4, 3, 4, 3, 4], [16] * 8])
    def test_planted_parts_are_found(self, sizes: list[int]) -> None:
        graph, truth = planted(sizes)
        assert as_sets(balanced_eigenvector.partition(graph, len(sizes), 0)) == truth

    @given(
        num_filters=st.integers(1, 24),
        share=st.floats(0, 1),
        density=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
        seed=st.integers(0, 1000),
    )
    @settings(deadline=None, max_examples=60)
    def test_sizes_differ_by_one_at_most_on_any_graph(
        self, num_filters: int, share: float, density: float, seed: int
    ) -> None:
        parts = 1 + round(share * (num_filters - 1))
        made = balanced_eigenvector.partition(random_graph(num_filters, density, seed), parts, seed)
        assert made.num_parts == parts
        assert max(made.sizes) - min(made.sizes) <= 1
        assert made.dropped == ()

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_relabelled_filters_get_relabelled_parts(self, seed: int) -> None:
        graph, _ = planted([6, 5, 6], seed=seed)
        order = np.random.default_rng(seed).permutation(graph.num_filters)  # new filter k is old order[k]
        relabelled = FilterGraph(graph.weights[np.ix_(order, order)], kind="planted")
        parts = as_sets(balanced_eigenvector.partition(graph, 3, 0))
        back = {
            frozenset(order[list(part)].tolist()) for part in balanced_eigenvector.partition(relabelled, 3, 0).parts
        }
        assert back == parts

    def test_uneven_blocks_are_cut_where_it_costs_least(self) -> None:
        # Blocks of 6 and 2 into two parts of 4: the small block stays whole.
        graph = cliques([6, 2])
        small = next(part for part in balanced_eigenvector.partition(graph, 2, 0).parts if 7 in part)
        assert 6 in small

    def test_two_parts_follow_a_chain(self) -> None:
        # Nothing but the order along the chain tells where its middle is.
        weights = np.diag(np.ones(9), 1)
        made = balanced_eigenvector.partition(FilterGraph(weights + weights.T, kind="chain"), 2, 0)
        assert made.parts == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))

    def test_more_components_than_parts_are_not_torn(self) -> None:
        graph = cliques([4] * 8)
        made = balanced_eigenvector.partition(graph, 4, 0)
        assert measure(made, graph, graph.weights).normalised_cut == pytest.approx(0.0, abs=1e-12)

    def test_filters_that_are_never_active_are_spread_over_the_parts(self) -> None:
        activations = np.abs(np.random.default_rng(0).normal(size=(50, 9)))
        activations[:, [0, 2, 4, 5]] = 0.0
        made = balanced_eigenvector.partition(co_activation_graph(activations), 2, 0)
        assert sorted(made.sizes) == [4, 5]
        live = [len(set(part) - {0, 2, 4, 5}) for part in made.parts]
        assert sorted(live) == [2, 3]

    def test_a_graph_without_edges_is_dealt_out(self) -> None:
        made = balanced_eigenvector.partition(FilterGraph(np.zeros((7, 7)), kind="empty"), 3, 0)
        assert made.parts == ((0, 3, 6), (1, 4), (2, 5))

    @pytest.mark.parametrize("num_vectors", [1, 2, 5, 9])
    def test_the_embedding_is_that_of_the_normalised_laplacian(self, num_vectors: int) -> None:
        # Nine of twelve vectors reach into the negative half of the adjacency's spectrum.
        graph = random_graph(12, 0.9, seed=0)
        laplacian = nx.normalized_laplacian_matrix(nx.from_numpy_array(graph.weights)).toarray()
        vectors = np.linalg.eigh(laplacian)[1][:, :num_vectors]
        wanted = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        embedding = balanced_eigenvector._embed(graph.weights, num_vectors)
        # Products of rows: the same for either sign of an eigenvector.
        np.testing.assert_allclose(embedding @ embedding.T, wanted @ wanted.T, atol=1e-9)

    def test_clusters_of_random_points_are_nearly_always_the_best_balanced_ones(self) -> None:
        def spread(points: Array, labels: NDArray[np.intp]) -> float:
            return sum(float(points[labels == c].var(axis=0).sum() * (labels == c).sum()) for c in range(3))

        choices = [np.array(c) for c in itertools.product(range(3), repeat=7) if sorted(np.bincount(c)) == [2, 2, 3]]
        found = 0
        for seed in range(10):
            points = np.random.default_rng(seed).normal(size=(7, 2))
            labels = balanced_eigenvector._balanced_kmeans(points, 3, seed=0)
            found += spread(points, labels) <= min(spread(points, choice) for choice in choices) + 1e-9
        assert found >= 9

    def test_no_exchange_of_filters_between_clusters_is_left_to_gain_from(self) -> None:
        points = np.random.default_rng(0).normal(size=(60, 4))
        labels = balanced_eigenvector._balanced_kmeans(points, 5, seed=0)
        centres = np.stack([points[labels == cluster].mean(axis=0) for cluster in range(5)])
        costs = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
        np.testing.assert_array_equal(balanced_eigenvector._assign(costs), labels)

    @given(costs=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=7))
    @settings(deadline=None, max_examples=40)
    def test_assignment_is_the_cheapest_balanced_one(self, costs: list[list[int]]) -> None:
        table = np.array(costs, dtype=np.float64)
        labels = balanced_eigenvector._assign(table)

        def price(choice: tuple[int, ...]) -> float:
            return float(table[np.arange(len(choice)), list(choice)].sum())

        def balanced(choice: tuple[int, ...]) -> bool:
            counts = np.bincount(choice, minlength=3)
            return bool(counts.max() - counts.min() <= 1)

        choices = filter(balanced, itertools.product(range(3), repeat=len(table)))
        assert balanced(tuple(labels))
        assert price(tuple(labels)) == min(map(price, choices))


class TestAnyMethod:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_seed_gives_the_same_parts_again(self, method: str) -> None:
        graph = random_graph(40, 0.3, seed=1)
        config = PartitionConfig(method=method, parts=6)
        assert make_partition(config, graph, 3) == make_partition(config, graph, 3)

    @pytest.mark.parametrize("method", METHODS)
    def test_one_part_holds_every_filter(self, method: str) -> None:
        made = make_partition(PartitionConfig(method=method, parts=1), cliques([4, 3, 2]), 0)
        assert made.parts == (tuple(range(9)),)
        assert made.method == method

    @pytest.mark.parametrize("method", METHODS)
    def test_as_many_parts_as_filters_hold_one_each(self, method: str) -> None:
        made = make_partition(PartitionConfig(method=method, parts=9), cliques([4, 3, 2]), 0)
        assert as_sets(made) == {frozenset([c]) for c in range(9)}

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(("parts", "text"), [(0, "parts = 0: must be"), (10, "parts = 10: .* only 9 filters")])
    def test_impossible_numbers_of_parts_are_refused(self, method: str, parts: int, text: str) -> None:
        with pytest.raises(PartitionError, match=text):
            make_partition(PartitionConfig(method=method, parts=parts), cliques([4, 3, 2]), 0)

    def test_an_unknown_method_names_the_known_ones(self) -> None:
        with pytest.raises(PartitionError, match=r"'kernighan-lin'.*balanced-eigenvector, dealt"):
            make_partition(PartitionConfig(method="kernighan-lin"), cliques([4, 4]), 0)

    def test_a_missing_dependency_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "nonn.partition.louvain")
        monkeypatch.setitem(sys.modules, "networkx", None)
        with pytest.raises(MissingExtraError, match=r"networkx is not installed.*nonn\[train\]"):
            load_partitioner("louvain")

    def test_importing_the_package_loads_no_partitioner(self) -> None:
        code = "import sys, nonn.partition; print(*sorted({'scipy', 'networkx', 'torch'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""


def first_and_rest(community: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A halving whose result is easy to read off."""
    return community[:1], community[1:]


class TestLouvain:
    def test_singletons_are_dropped_and_the_largest_communities_seed_the_parts(self) -> None:
        parts, dropped = communities_to_parts([{7}, {0, 1}, {2, 3, 4}, {8}, {5, 6}], 3, first_and_rest)
        assert parts == ((2, 3, 4), (0, 1), (5, 6))
        assert dropped == (7, 8)

    def test_a_leftover_goes_whole_to_the_smallest_part(self) -> None:
        communities = [set(range(5)), set(range(5, 8)), set(range(8, 11)), {11, 12}, {13, 14}]
        parts, _ = communities_to_parts(communities, 2, first_and_rest)
        # 5 and 3 are seeds; then 3 → 3 makes 6, 2 → 5 makes 7, 2 → 6 makes 8.
        assert parts == ((0, 1, 2, 3, 4, 11, 12), (5, 6, 7, 8, 9, 10, 13, 14))

    def test_the_published_graph_of_a_wide_network_gives_the_sizes_of_the_published_code(self) -> None:
        sizes, start = [35, 24, 22, 22, 21, 20, 19, 14, 2], 0
        communities: list[set[int]] = []
        for size in sizes:
            communities.append(set(range(start, start + size)))
            start += size
        communities += [{i} for i in range(start, 256)]
        parts, dropped = communities_to_parts(communities[::-1], 8, first_and_rest)
        assert [len(part) for part in parts] == [35, 24, 22, 22, 21, 20, 19, 16]
        assert dropped == tuple(range(179, 256))

    def test_a_ring_of_cliques_is_cut_finer_than_at_the_resolution_of_python_louvain(self) -> None:
        """Networkx merges neighbouring cliques at 0.7; at 1/0.7, which is python-louvain's 0.7, it keeps them apart."""
        ring = nx.ring_of_cliques(24, 4)
        network = FilterGraph(nx.to_numpy_array(ring), kind="test")
        assert len(nx.community.louvain_communities(ring, resolution=0.7, seed=0)) < 24
        assert sorted(louvain.partition(network, 24, 0).sizes) == [4] * 24

    def test_communities_of_equal_size_stay_apart(self) -> None:
        communities = [{6, 7, 8}, {0, 1, 2}, {3, 4, 5}]
        parts, _ = communities_to_parts(communities, 3, first_and_rest)
        assert parts == ((0, 1, 2), (3, 4, 5), (6, 7, 8))

    def test_the_largest_communities_are_halved_until_there_are_enough(self) -> None:
        parts, dropped = communities_to_parts([{0, 1, 2, 3}, {4, 5, 6}, {9}], 4, first_and_rest)
        assert parts == ((4, 5, 6), (2, 3), (0,), (1,))
        assert dropped == (9,)  # what halving leaves alone is a part, what Louvain leaves alone is dropped

    def test_the_largest_community_is_kept_when_nothing_is_single(self) -> None:
        _, dropped = communities_to_parts([{0, 1, 2, 3}, {4, 5}], 2, first_and_rest)
        assert dropped == ()

    @given(labels=st.lists(st.integers(0, 8), min_size=1, max_size=30), parts=st.integers(1, 8))
    @settings(deadline=None)
    def test_every_filter_of_a_community_ends_in_one_part(self, labels: list[int], parts: int) -> None:
        communities = [{i for i, label in enumerate(labels) if label == value} for value in set(labels)]
        single = {min(community) for community in communities if len(community) == 1}
        if len(labels) - len(single) < parts:
            with pytest.raises(PartitionError, match=f"only {len(labels) - len(single)} filters share"):
                communities_to_parts(communities, parts, first_and_rest)
            return
        chosen, dropped = communities_to_parts(communities, parts, first_and_rest)
        assert set(dropped) == single
        assert len(chosen) == parts
        assert all(chosen)
        assert sorted(itertools.chain(*chosen, dropped)) == list(range(len(labels)))

    def test_cliques_become_unbalanced_parts_and_filters_without_an_edge_are_dropped(self) -> None:
        made = louvain.partition(cliques([3, 6, 3], isolated=2), 3, 0)
        assert made.parts == ((3, 4, 5, 6, 7, 8), (0, 1, 2), (9, 10, 11))
        assert made.dropped == (12, 13)

    def test_halves_of_a_community_hold_together(self) -> None:
        # Two pairs of cliques, each pair tied closely enough to be one community.
        weights = cliques([4, 4, 4, 4]).weights.copy()
        weights[:4, 4:8] = weights[4:8, :4] = weights[8:12, 12:] = weights[12:, 8:12] = 0.7
        graph = FilterGraph(weights, kind="test")
        assert louvain.partition(graph, 2, 0).sizes == (8, 8)
        assert as_sets(louvain.partition(graph, 4, 0)) == {frozenset(range(i, i + 4)) for i in range(0, 16, 4)}

    def test_too_few_connected_filters_are_told_with_a_remedy(self) -> None:
        with pytest.raises(PartitionError, match=r"parts = 4: only 3 filters.*\(5 are single.*graph\.percentile"):
            louvain.partition(cliques([3], isolated=5), 4, 0)


class TestPartition:
    def test_filters_are_sorted_inside_a_part_and_parts_keep_their_order(self) -> None:
        made = Partition(parts=((3, 1), (0,)), num_filters=5, method="test", dropped=(4, 2))
        assert made.parts == ((1, 3), (0,))
        assert made.dropped == (2, 4)
        assert made.sizes == (2, 1)
        assert made.num_parts == 2

    @pytest.mark.parametrize(
        ("parts", "dropped", "text"),
        [
            ((), (0, 1, 2), "at least one part"),
            (((0, 1, 2), ()), (), "part 1 has no filter"),
            (((0, 1), (1, 2)), (), "filter 1 is in part 0 and again in part 1"),
            (((0, 0), (1, 2)), (), "filter 0 is in part 0 and again in part 0"),
            (((0, 1), (2,)), (2,), "filter 2 is in part 1 and again in the dropped filters"),
            (((0, 1), (2, 3)), (), "part 1: filter 3 is not one of the 3 filters"),
            (((-1, 0), (1, 2)), (), "part 0: filter -1 is not"),
            (((0,),), (), "2 filters are in no part and not dropped, the first is 1"),
        ],
    )
    def test_what_is_no_partition_is_refused(
        self, parts: tuple[tuple[int, ...], ...], dropped: tuple[int, ...], text: str
    ) -> None:
        with pytest.raises(PartitionError, match=text):
            Partition(parts=parts, num_filters=3, method="test", dropped=dropped)

    def test_json_brings_the_same_partition_back(self) -> None:
        made = louvain.partition(cliques([3, 6, 3], isolated=2), 3, 0)
        assert Partition.from_json(json.loads(json.dumps(made.to_json()))) == made

    @pytest.mark.parametrize(
        "change", [{"parts": 3}, {"parts": [["a"]]}, {"num_filters": "many"}, {"dropped": None}, {"parts": [[0]]}]
    )
    def test_broken_json_is_refused(self, change: dict[str, object]) -> None:
        values = {"parts": [[0, 1], [2]], "num_filters": 3, "method": "test", "dropped": []}
        assert Partition.from_json(values).sizes == (2, 1)
        with pytest.raises(PartitionError):
            Partition.from_json({**values, **change})
        for key in values:
            with pytest.raises(PartitionError, match=key):
                Partition.from_json({name: value for name, value in values.items() if name != key})


class TestMeasures:
    # 0 ─3─ 1 ─1─ 2 ─1─ 3: degrees 3, 4, 2, 1.
    graph = FilterGraph(np.array([[0, 3, 0, 0], [3, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0.0]]), kind="test")
    correlation = np.array([[1, 0.5, 0, 0], [0.5, 1, 0.2, 0], [0, 0.2, 1, 0.3], [0, 0, 0.3, 1]])

    def test_by_hand(self) -> None:
        made = measure(Partition(((0, 1), (2, 3)), 4, "test"), self.graph, self.correlation)
        assert made.sizes == (2, 2)
        assert made.num_dropped == 0
        assert made.balance == 1.0
        assert made.normalised_cut == pytest.approx(1 / 7 + 1 / 3)
        assert made.modularity == pytest.approx(8 / 10 - (49 + 9) / 100)
        assert made.kept_correlation == pytest.approx(0.8)

    def test_a_dropped_filter_is_cut_and_lost(self) -> None:
        made = measure(Partition(((0, 1), (2,)), 4, "test", dropped=(3,)), self.graph, self.correlation)
        assert made.num_dropped == 1
        assert made.balance == 2.0
        assert made.normalised_cut == pytest.approx(1 / 7 + 1)
        assert made.modularity == pytest.approx(6 / 10 - (49 + 4 + 1) / 100)
        assert made.kept_correlation == pytest.approx(0.5)

    @given(
        num_filters=st.integers(2, 14),
        seed=st.integers(0, 1000),
        parts=st.integers(1, 5),
        drop=st.booleans(),
    )
    @settings(deadline=None, max_examples=40)
    def test_modularity_and_cut_equal_networkx(self, num_filters: int, seed: int, parts: int, drop: bool) -> None:
        rng = np.random.default_rng(seed)
        graph = random_graph(num_filters, 0.6, seed)
        assume(graph.weights.any())  # networkx divides by the weight of all edges
        chunks = np.array_split(rng.permutation(num_filters), min(parts, num_filters))
        sets = [set(chunk.tolist()) for chunk in chunks]
        dropped = tuple(sets.pop()) if drop and len(sets) > 1 else ()
        made = measure(Partition(tuple(map(tuple, sets)), num_filters, "test", dropped), graph, graph.weights)
        network = nx.from_numpy_array(graph.weights)
        communities = [*sets, *({index} for index in dropped)]
        assert made.modularity == pytest.approx(nx.community.modularity(network, communities, weight="weight"))
        cut = 0.0
        for part in sets:
            volume = nx.volume(network, part, weight="weight")
            cut += nx.cut_size(network, part, weight="weight") / volume if volume else 0.0
        assert made.normalised_cut == pytest.approx(cut, abs=1e-12)

    def test_the_diagonal_of_the_correlation_does_not_count(self) -> None:
        partition = Partition(((0, 1), (2, 3)), 4, "test")
        without = self.correlation - np.eye(4)
        assert measure(partition, self.graph, without) == measure(partition, self.graph, self.correlation)

    def test_a_graph_without_edges_has_defined_measures(self) -> None:
        empty = FilterGraph(np.zeros((4, 4)), kind="empty")
        made = measure(Partition(((0, 1), (2, 3)), 4, "test"), empty, np.eye(4))
        assert (made.normalised_cut, made.modularity, made.kept_correlation) == (0.0, 0.0, 1.0)

    def test_numbers_of_filters_that_do_not_fit_are_refused(self) -> None:
        three = Partition(((0, 1), (2,)), 3, "test")
        with pytest.raises(ShapeError, match="partition has 3 filters, the graph 4"):
            measure(three, self.graph, self.correlation)
        with pytest.raises(ShapeError, match=r"\[3, 3\]"):
            measure(Partition(((0, 1), (2, 3)), 4, "test"), self.graph, np.eye(3))

    def test_json_holds_every_measure(self) -> None:
        made = measure(Partition(((0, 1), (2, 3)), 4, "test"), self.graph, self.correlation)
        values = json.loads(json.dumps(to_json(made)))
        assert values["sizes"] == [2, 2]
        assert values["kept_correlation"] == made.kept_correlation
        assert set(values) == {
            "sizes",
            "num_dropped",
            "balance",
            "normalised_cut",
            "modularity",
            "kept_correlation",
        }
