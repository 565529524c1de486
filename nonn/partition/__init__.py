"""Partitions of the teacher's filters: cuts of the filter graph into parts, which the students learn.

A partitioner is one module of this package with one function ``partition(graph, parts, seed) -> Partition``. It is
imported when its method is requested; ``nonn.partition.measures`` measures the quality of a cut.

========================  =======================================  ==============================================
method                    module                                   parts
========================  =======================================  ==============================================
``balanced-eigenvector``  ``nonn.partition.balanced_eigenvector``  correlated filters together, sizes ± 1
``dealt-eigenvector``     ``nonn.partition.dealt_eigenvector``     the same clusters spread out, sizes ± 1
``louvain``               ``nonn.partition.louvain``               NoNN's rule: unbalanced, prunes
``metis``                 ``nonn.partition.metis``                 lightest cut at nearly equal sizes
``random``                ``nonn.partition.random``                the control, sizes ± 1
``spectral``              ``nonn.partition.spectral``              plain clusters: unbalanced
========================  =======================================  ==============================================

``METHODS`` has the choices of ``partition.method``. docs/extending.md shows a method outside of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from nonn.errors import PartitionError
from nonn.partition.partition import Partition, check_parts, parts_of_labels
from nonn.toml import Registry

if TYPE_CHECKING:
    from nonn.config import PartitionConfig
    from nonn.partition.graph import FilterGraph

__all__ = [
    "METHODS",
    "Partition",
    "Partitioner",
    "check_parts",
    "check_takes_sizes",
    "load_partitioner",
    "make_partition",
    "parts_of_labels",
]

Partitioner: TypeAlias = "Callable[[FilterGraph, int, int], Partition]"

METHODS: Registry[Partitioner] = Registry(
    "nonn.partitioners",
    {
        "balanced-eigenvector": "nonn.partition.balanced_eigenvector:partition",
        "dealt-eigenvector": "nonn.partition.dealt_eigenvector:partition",
        "louvain": "nonn.partition.louvain:partition",
        "metis": "nonn.partition.metis:partition",
        "random": "nonn.partition.random:partition",
        "spectral": "nonn.partition.spectral:partition",
    },
)


def make_partition(
    config: PartitionConfig, graph: FilterGraph, seed: int, sizes: Sequence[int] | None = None
) -> Partition:
    """Cuts a filter graph as configured; the same input and seed give the same parts.

    Args:
        config: method and number of parts.
        graph: graph of C filters.
        seed: seed of the cut.
        sizes: filters of each part [M], for devices of unequal capacity; None is the method's own rule.

    Raises:
        PartitionError: the method is unknown, or cannot make these parts.
        MissingExtraError: a package that the method needs is not installed.
    """
    if sizes is None:
        made: object = load_partitioner(config.method)(graph, config.num_parts, seed)
        if not isinstance(made, Partition):
            raise PartitionError(f"partition.method = {config.method!r}: gave a {type(made).__name__}, not a Partition")
        return made
    check_takes_sizes(config.method)
    from nonn.partition import balanced_eigenvector

    return balanced_eigenvector.partition(graph, config.num_parts, seed, sizes)


def check_takes_sizes(method: str) -> None:
    """Raises PartitionError where a method cannot make parts of given sizes."""
    if method != "balanced-eigenvector":
        raise PartitionError(
            f"partition.method = {method!r}: does not accept the sizes of parts that devices of unequal capacity need; "
            "choose balanced-eigenvector"
        )


def load_partitioner(method: str) -> Partitioner:
    """Imports a partitioner: a function of graph, number of parts and seed.

    Raises:
        PartitionError: the method is unknown.
        MissingExtraError: a package that the method needs is not installed.
    """
    return METHODS.load(method, "partition.method", PartitionError)
