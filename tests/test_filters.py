"""Filter graphs against literal references, and what unusable activations are told."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nonn.config import GraphConfig, load_experiment
from nonn.errors import ConfigError, DataError, ShapeError
from nonn.partition import graph as filters
from nonn.partition.graph import FilterGraph, build_graph, co_activation_graph, correlation, nonn_graph

Array = NDArray[np.float64]
Graph = Callable[[Array], FilterGraph]
Statistic = Callable[[Array], object]


def random_activations(images: int, num_filters: int, seed: int = 0) -> Array:
    """Rectified noise [n, C]: about a third of it zero, a few negatives left in as a network without ReLU has them."""
    rng = np.random.default_rng(seed)
    activations = rng.normal(0.4, 1.0, (images, num_filters))
    return np.where(rng.random(activations.shape) < 0.8, np.maximum(activations, 0.0), activations)


def literal_graph(activations: Array, kind: str, top: int = 50, percentile: float = 99.0) -> Array:
    """Both rules, one image and one pair at a time."""
    num_filters = activations.shape[1]
    weights = np.zeros((num_filters, num_filters))
    for image in activations:
        a = [max(float(value), 0.0) for value in image]
        if max(a) == 0:
            continue
        a = [value / max(a) for value in a]
        if kind == "nonn":
            kept = sorted(range(num_filters), key=lambda c: (-a[c], c))[:top]
            a = [value if c in kept else 0.0 for c, value in enumerate(a)]
        for i in range(num_filters):
            for j in range(num_filters):
                if i != j:
                    weights[i, j] += a[i] * a[j] * (abs(a[i] - a[j]) if kind == "nonn" else 1.0)
    weights /= weights.max()
    if kind == "nonn":
        weights[weights < np.percentile(weights[weights > 0], percentile)] = 0.0
    return weights


@pytest.mark.parametrize("top", [2, 5, 12, 50])
@pytest.mark.parametrize("percentile", [0.0, 60.0, 99.0])
def test_nonn_graph_equals_a_literal_double_loop(top: int, percentile: float) -> None:
    activations = random_activations(40, 12)
    graph = nonn_graph(activations, top=top, percentile=percentile)
    np.testing.assert_allclose(graph.weights, literal_graph(activations, "nonn", top, percentile), rtol=1e-12)


@given(seed=st.integers(0, 10_000), num_filters=st.integers(3, 9), top=st.integers(2, 10))
@settings(deadline=None, max_examples=30)
def test_equally_active_filters_are_ranked_by_index(seed: int, num_filters: int, top: int) -> None:
    # Four activity levels only, so that ties straddle the cut at `top` in most images.
    levels = np.random.default_rng(seed).integers(0, 4, (12, num_filters)).astype(np.float64)
    levels[0] = 0.0
    levels[0, :2] = [3, 1]  # one unequal pair, so that there is an edge
    got = nonn_graph(levels, top=top, percentile=0.0).weights
    np.testing.assert_allclose(got, literal_graph(levels, "nonn", top, 0.0), rtol=1e-12)


def test_co_activation_graph_equals_a_literal_double_loop() -> None:
    activations = random_activations(40, 12)
    graph = co_activation_graph(activations)
    np.testing.assert_allclose(graph.weights, literal_graph(activations, "co-activation"), rtol=1e-12)


@pytest.mark.parametrize("kind", ["co-activation", "nonn"])
def test_graphs_do_not_depend_on_the_brightness_of_an_image(kind: str) -> None:
    activations = random_activations(30, 8)
    brightness = 2.0 ** np.arange(-15, 15)[:, None]
    config = GraphConfig(kind=kind, percentile=50.0)
    np.testing.assert_array_equal(
        build_graph(config, activations).weights, build_graph(config, activations * brightness).weights
    )


@pytest.mark.parametrize("kind", ["co-activation", "nonn"])
def test_images_without_activity_change_nothing(kind: str) -> None:
    activations = random_activations(30, 8)
    config = GraphConfig(kind=kind, percentile=50.0)
    padded = np.vstack([activations, np.zeros((5, 8)), -np.ones((5, 8))])
    np.testing.assert_array_equal(build_graph(config, activations).weights, build_graph(config, padded).weights)


@pytest.mark.parametrize("make", [co_activation_graph, nonn_graph])
def test_a_filter_that_is_never_active_has_no_edge(make: Graph) -> None:
    activations = random_activations(30, 8)
    activations[:, 3] = 0.0
    weights = make(activations).weights
    assert not weights[3].any()
    assert not weights[:, 3].any()
    assert weights.max() == 1.0


def test_the_percentile_keeps_the_strongest_edges() -> None:
    activations = random_activations(200, 30)
    every = nonn_graph(activations, percentile=0.0).weights
    few = nonn_graph(activations, percentile=90.0).weights
    kept = few > 0
    assert kept.sum() == pytest.approx(0.1 * (every > 0).sum(), abs=2)
    assert every[kept].min() > every[~kept].max()
    np.testing.assert_array_equal(few[kept], every[kept])


@pytest.mark.parametrize(("filters", "percentile"), [(256, 99.0), (128, 98.0), (64, 96.0), (2, 0.0)])
def test_the_percentile_of_equal_degree_is_that_of_the_published_teacher_and_falls_with_the_width(
    filters: int, percentile: float
) -> None:
    activations = random_activations(60, filters)
    equal = nonn_graph(activations, percentile="equal-degree").weights
    np.testing.assert_array_equal(equal, nonn_graph(activations, percentile=percentile).weights)


def test_an_experiment_file_may_ask_for_the_percentile_of_equal_degree() -> None:
    assert load_experiment(None, ["graph.percentile=equal-degree"]).graph.percentile == "equal-degree"
    with pytest.raises(ConfigError, match=r"graph\.percentile = 'equal'.*equal-degree"):
        load_experiment(None, ["graph.percentile=equal"])


def test_correlation_equals_numpy() -> None:
    activations = random_activations(60, 9) + 5.0
    np.testing.assert_allclose(correlation(activations), np.abs(np.corrcoef(activations.T)), rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e150])
def test_correlation_does_not_depend_on_the_scale_of_a_filter(scale: float) -> None:
    activations = random_activations(60, 5)
    scaled = activations * np.array([1.0, scale, 1.0, scale, 1.0])
    np.testing.assert_allclose(correlation(scaled), correlation(activations), rtol=1e-9)


def test_a_constant_filter_correlates_with_nothing() -> None:
    activations = random_activations(60, 5)
    activations[:, 1] = 0.0
    activations[:, 4] = 0.1  # its mean is not exactly 0.1, so a variance of 1e-34 must not pass for variation
    strength = correlation(activations)
    assert not strength[[1, 4]].any()
    assert not strength[:, [1, 4]].any()
    np.testing.assert_array_equal(strength.diagonal(), [1, 0, 1, 1, 0])


def test_opposite_filters_are_fully_correlated() -> None:
    values = np.linspace(0.0, 1.0, 20)
    np.testing.assert_allclose(correlation(np.stack([values, 1 - values], axis=1)), np.ones((2, 2)))


@pytest.mark.parametrize("statistic", ["co-activation", "nonn", "correlation"])
def test_the_size_of_a_chunk_changes_nothing(statistic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    activations = random_activations(53, 10)

    def compute() -> Array:
        if statistic == "correlation":
            return correlation(activations)
        return build_graph(GraphConfig(kind=statistic, percentile=50.0), activations).weights

    whole = compute()
    monkeypatch.setattr(filters, "_CHUNK_ELEMENTS", 90)
    np.testing.assert_allclose(compute(), whole, rtol=1e-12)


def test_memory_stays_bounded_however_many_pairs_there_are() -> None:
    activations = random_activations(800, 256)  # 32,640 pairs an image: 200 MB for every array of all of them
    tracemalloc.start()
    try:
        nonn_graph(activations, top=256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150e6


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.bool_])
def test_activations_of_any_real_type_are_read(dtype: type) -> None:
    activations: NDArray[Any] = (random_activations(40, 6) > 0.5).astype(dtype)
    np.testing.assert_allclose(
        co_activation_graph(activations).weights, literal_graph(activations.astype(float), "co-activation")
    )


@pytest.mark.parametrize("function", [co_activation_graph, nonn_graph, correlation])
class TestUnusableActivations:
    def test_feature_maps_are_told_to_be_pooled(self, function: Statistic) -> None:
        with pytest.raises(ShapeError, match=r"\[2, 3, 4, 4\].*average"):
            function(np.ones((2, 3, 4, 4)))

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
    def test_empty(self, function: Statistic, shape: tuple[int, int]) -> None:
        with pytest.raises(ShapeError, match="empty"):
            function(np.ones(shape))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite_names_image_and_filter(self, function: Statistic, value: float) -> None:
        activations = random_activations(5, 4)
        activations[3, 2] = value
        with pytest.raises(DataError, match=f"filter 2 on image 3 is {value}"):
            function(activations)

    def test_nothing_active(self, function: Statistic) -> None:
        with pytest.raises(DataError, match="none of the 4 filters is active"):
            function(np.minimum(random_activations(5, 4), 0.0))

    def test_not_numbers(self, function: Statistic) -> None:
        with pytest.raises(DataError, match="complex128"):
            function(np.ones((3, 3), dtype=complex))


@pytest.mark.parametrize(
    ("make", "activations"), [(co_activation_graph, np.eye(4)), (nonn_graph, np.ones((3, 4)))], ids=["alone", "equal"]
)
def test_activations_without_an_edge_are_refused(make: Graph, activations: Array) -> None:
    with pytest.raises(DataError, match="no edge between any of the 4 filters"):
        make(activations)


def test_options_out_of_range_are_refused() -> None:
    activations = random_activations(5, 4)
    with pytest.raises(ConfigError, match=r"graph\.top = 1"):
        nonn_graph(activations, top=1)
    with pytest.raises(ConfigError, match=r"graph\.percentile = 101"):
        nonn_graph(activations, percentile=101)
    with pytest.raises(ConfigError, match=r"graph\.kind = 'cosine'"):
        build_graph(GraphConfig(kind="cosine"), activations)


def test_build_graph_passes_the_options_of_the_experiment() -> None:
    activations = random_activations(40, 10)
    config = GraphConfig(kind="nonn", top=4, percentile=70.0)
    built = build_graph(config, activations)
    assert built.kind == "nonn"
    np.testing.assert_array_equal(built.weights, nonn_graph(activations, top=4, percentile=70.0).weights)
    assert build_graph(GraphConfig(), activations).kind == "co-activation"


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (np.zeros((2, 3)), ShapeError, r"\[2, 3\]"),
        (np.zeros((0, 0)), ShapeError, r"\[0, 0\]"),
        (np.array([[0, -1.0], [-1, 0]]), DataError, "not negative"),
        (np.array([[0, np.nan], [np.nan, 0]]), DataError, "finite"),
        (np.array([[1.0, 0], [0, 0]]), DataError, "diagonal"),
        (np.array([[0, 1.0], [2, 0]]), DataError, "symmetric"),
    ],
)
def test_a_graph_that_is_none_is_refused(weights: Array, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        FilterGraph(weights, kind="test")


def test_a_graph_cannot_be_changed_from_outside() -> None:
    weights = np.array([[0.0, 1.0], [1.0, 0.0]])
    graph = FilterGraph(weights, kind="test")
    weights[0, 1] = 7.0
    assert graph.weights[0, 1] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        graph.weights[0, 1] = 7.0
