"""Filter graphs: which filters of the teacher's final convolutional layer are active together.

The input is one matrix of activations [n, C]: for each held-out training image the spatial mean of every final filter
after BN and ReLU. The output is a weighted graph over the C filters, which ``nonn.partition`` cuts into parts.

==================  =======================================================================================
``co-activation``   W_ij = Σ a_i a_j: filters active on the same images are connected
``nonn``            W_ij = Σ a_i a_j |a_i − a_j| over each image's ``top`` filters, weak edges dropped (NoNN)
==================  =======================================================================================

Both first clip negatives and divide each image by its maximum, so that they differ only in the edge rule and a bright
image weighs no more than a dim one. Co-activation is NoNN's edge without |a_i − a_j|, the factor that according to
Jeong et al. compromises the correlation between filters. Their own edge and scaling were not available; both are
chosen here.

Limits: a filter that is never active has no edge; it stays in the graph and the partitioners place it. Images are read
in chunks, so that memory in addition to the activations is a few C × C matrices and about 100 MB.

References: Bhardwaj et al. 2019, arXiv 1907.11804 (NoNN); Jeong, Park, Yang, Electronics 2021, 10(14), 1614.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from nonn.config import GraphConfig
from nonn.errors import ConfigError, DataError, ShapeError
from nonn.toml import Registry

__all__ = [
    "EQUAL_DEGREE",
    "GRAPHS",
    "FilterGraph",
    "build_graph",
    "co_activation_graph",
    "correlation",
    "nonn_graph",
]

Matrix = NDArray[np.float64]

EQUAL_DEGREE: Final = "equal-degree"

_CHUNK_ELEMENTS = 2**21  # float64 elements of one temporary: 16 MB, of which a few exist at once


@dataclass(frozen=True, eq=False)
class FilterGraph:
    """A weighted, undirected graph whose nodes are filters.

    Attributes:
        weights: edge weights [C, C], symmetric, non-negative, zero on the diagonal; kept as a read-only copy.
        kind: the edge rule, for reports.

    Raises:
        ShapeError: the weights are not a square matrix with at least one row.
        DataError: a weight is not finite, negative, differs from its mirror, or is on the diagonal.
    """

    weights: Matrix
    kind: str

    def __post_init__(self) -> None:
        weights = np.array(self.weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not weights.size:
            raise ShapeError(f"weights of a filter graph must be [C, C] with C ≥ 1, not {list(weights.shape)}")
        if not np.isfinite(weights).all() or weights.min() < 0:
            raise DataError("weights of a filter graph must be finite and not negative")
        if weights.diagonal().any():
            raise DataError("a filter has no edge to itself: set the diagonal of the weights to 0")
        if not np.allclose(weights, weights.T, rtol=1e-9, atol=1e-12):
            raise DataError("weights of a filter graph must be symmetric: W_ij is W_ji")
        weights = (weights + weights.T) / 2
        weights.setflags(write=False)
        object.__setattr__(self, "weights", weights)

    @property
    def num_filters(self) -> int:
        """C."""
        return int(self.weights.shape[0])


def build_graph(config: GraphConfig, activations: NDArray[Any]) -> FilterGraph:
    """Builds the configured graph.

    Args:
        config: kind of graph and its options.
        activations: spatial means of the final filters [n, C].

    Raises:
        ConfigError: the kind is unknown, or an option is out of range.
        ShapeError, DataError: the activations are invalid; see the function of the graph.
    """
    return GRAPHS.load(config.kind, "graph.kind")(config, activations)


def co_activation_graph(activations: NDArray[Any]) -> FilterGraph:
    """Connects filters that are active on the same images: W_ij = Σ a_i a_j, scaled to a largest weight of 1.

    Args:
        activations: spatial means of the final filters [n, C]; negatives count as 0.

    Raises:
        ShapeError: not a matrix, or empty.
        DataError: NaN or infinite, no filter is ever active, or no two filters are active on one image.

    Source: new here, after the criticism of NoNN's edge in Jeong, Park, Yang 2021.
    """
    activations = _checked(activations)
    num_filters = activations.shape[1]
    weights = np.zeros((num_filters, num_filters))
    for images in _relative(activations, rows=max(1, _CHUNK_ELEMENTS // num_filters)):
        weights += images.T @ images
    return FilterGraph(_scaled(np.triu(weights, 1)), kind="co-activation")


def nonn_graph(
    activations: NDArray[Any], top: int = 50, percentile: float | Literal["equal-degree"] = 99.0
) -> FilterGraph:
    """NoNN's filter activation network: W_ij = Σ a_i a_j |a_i − a_j|, strongest edges only.

    An edge is strong where two filters are both active but unequally so. Only the ``top`` most active filters of
    an image form edges; equal activations are ranked by filter index. After division by the largest weight, entries
    below the percentile of all non-zero entries of W are dropped, so that most filters have no edge.

    Args:
        activations: spatial means of the final filters [n, C]; negatives count as 0.
        top: number of filters per image that form edges, at least 2; more than C means all.
        percentile: in [0, 100]; 0 keeps every edge. ``equal-degree`` is ``100 − 256 / C``, which keeps as many edges
            per filter as NoNN's 99 does on the 256 filters of its teacher; 99 leaves most filters of a narrower teacher
            without an edge.

    Raises:
        ConfigError: ``top`` or ``percentile`` is out of range.
        ShapeError: not a matrix, or empty.
        DataError: NaN or infinite, no filter is ever active, or no two filters are unequally active on one image.

    Source: Bhardwaj et al. 2019, arXiv 1907.11804, and the published code.
    """
    if top < 2:
        raise ConfigError(f"graph.top = {top}: must be at least 2, an edge needs two filters")
    if percentile != EQUAL_DEGREE and not 0 <= percentile <= 100:
        raise ConfigError(f"graph.percentile = {percentile}: must be between 0 and 100, or '{EQUAL_DEGREE}'")
    activations = _checked(activations)
    num_filters = activations.shape[1]
    least = max(0.0, 100 - 256 / num_filters) if percentile == EQUAL_DEGREE else percentile
    top = min(top, num_filters)
    first, second = np.triu_indices(top, 1)  # pairs of ranks [top (top − 1) / 2]
    weights = np.zeros(num_filters * num_filters)
    for images in _relative(activations, rows=max(1, _CHUNK_ELEMENTS // max(num_filters, len(first)))):
        ranked = np.argsort(-images, axis=1, kind="stable")[:, :top]  # [B, top]
        active = np.take_along_axis(images, ranked, axis=1)
        higher, lower = active[:, first], active[:, second]  # ranks descend, so the difference is never negative
        edges = ranked[:, first] * num_filters + ranked[:, second]
        weights += np.bincount(edges.ravel(), (higher * lower * (higher - lower)).ravel(), minlength=weights.size)
    directed = weights.reshape(num_filters, num_filters)  # an edge is at [more active, less active]
    scaled = _scaled(np.triu(directed + directed.T, 1))
    scaled[scaled < np.percentile(scaled[scaled > 0], least)] = 0.0
    return FilterGraph(scaled, kind="nonn")


# By the name of ``graph.kind``.
GRAPHS: Registry[Callable[[GraphConfig, NDArray[Any]], FilterGraph]] = Registry(
    "nonn.graphs",
    {
        "co-activation": lambda config, activations: co_activation_graph(activations),
        "nonn": lambda config, activations: nonn_graph(activations, top=config.top, percentile=config.percentile),
    },
)


def correlation(activations: NDArray[Any]) -> Matrix:
    """Absolute Pearson correlation between filters, the yardstick of ``nonn.partition.measures``.

    Args:
        activations: spatial means of the final filters [n, C], as they are.

    Returns:
        |r| in [0, 1] [C, C]; 1 on the diagonal. Row and column of a filter that never varies are 0.

    Raises:
        ShapeError: not a matrix, or empty.
        DataError: NaN or infinite, or no filter is ever active.
    """
    activations = _checked(activations)
    num_filters = activations.shape[1]
    low = activations.min(axis=0).astype(np.float64)
    spread = activations.max(axis=0).astype(np.float64) - low
    varies = spread > 0
    spread[~varies] = 1.0
    rows = max(1, _CHUNK_ELEMENTS // num_filters)
    # Scaled to [0, 1] first: correlation does not change, and tiny or huge activations stay within float64.
    mean = np.zeros(num_filters)
    for images in _chunks(activations, rows):
        mean += ((images - low) / spread).sum(axis=0)
    mean /= len(activations)
    products = np.zeros((num_filters, num_filters))
    for images in _chunks(activations, rows):
        centred = (images - low) / spread - mean
        products += centred.T @ centred
    norms = np.sqrt(products.diagonal())
    norms = np.where(varies, norms, np.inf)  # x / inf is 0: a constant filter correlates with nothing
    strength = np.minimum(np.abs(products) / norms[:, None] / norms[None, :], 1.0)
    np.fill_diagonal(strength, varies.astype(np.float64))
    return np.asarray(np.maximum(strength, strength.T))


def _checked(activations: NDArray[Any]) -> NDArray[Any]:
    """Returns the activations as a valid array [n, C], or raises an error."""
    activations = np.asarray(activations)
    if activations.ndim != 2:
        raise ShapeError(
            f"activations must be [images, filters], not {list(activations.shape)}; "
            "average feature maps [n, C, H, W] over H and W first"
        )
    if not activations.size:
        raise ShapeError(f"activations {list(activations.shape)} are empty: need at least one image and one filter")
    if activations.dtype.kind not in "fiub":
        raise DataError(f"activations must be real numbers, not {activations.dtype}")
    bad = ~np.isfinite(activations)
    if bad.any():
        image, filter_ = (int(index) for index in np.argwhere(bad)[0])
        raise DataError(
            f"activation of filter {filter_} on image {image} is {activations[image, filter_]} "
            f"({int(bad.sum())} such values): the teacher diverged or its input is not finite"
        )
    if not (activations > 0).any():
        raise DataError(f"none of the {activations.shape[1]} filters is active on any image: is the teacher trained?")
    return activations


def _chunks(activations: NDArray[Any], rows: int) -> Iterator[Matrix]:
    """Yields the images [≤ rows, C] as float64."""
    for start in range(0, len(activations), rows):
        yield activations[start : start + rows].astype(np.float64)


def _relative(activations: NDArray[Any], rows: int) -> Iterator[Matrix]:
    """Yields the images [≤ rows, C] clipped at 0 and divided by their maximum; an image without activity is 0."""
    for images in _chunks(activations, rows):
        active = np.maximum(images, 0.0)
        peak = active.max(axis=1, keepdims=True)
        yield active / np.where(peak > 0, peak, 1.0)


def _scaled(upper: Matrix) -> Matrix:
    """Mirrors an upper triangle [C, C] and divides by its largest entry."""
    largest = upper.max()
    if not largest > 0:
        raise DataError(
            f"no edge between any of the {len(upper)} filters: no image has two filters that are active together "
            "(and, for graph.kind = 'nonn', unequally)"
        )
    return np.asarray((upper + upper.T) / largest)
