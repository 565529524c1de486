"""Comparison of all partitioners, before a student is trained.

In addition to the measures of a cut (``nonn.partition.measures``), two measures of its use:

- Stability: the mean adjusted Rand index of all pairs of ten cuts with different seeds. 1 is the same cut every time,
  0 is the agreement expected by chance.
- The probe: accuracy of the teacher's own filters when whole parts are missing, by a ridge regression to the teacher's
  logits for each set of remaining parts. Perfect students would reach it. Fitted on the training split, evaluated on
  the held-out split; no network is trained and the test split is not used.

The probe is an upper bound that ignores how hard a part is to learn: correlated filters may be easier for a small
student. Filters that a method drops are missing from its probe even when no part is.

References: Hubert, Arabie 1985 (adjusted Rand index).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from nonn.config import GraphConfig
from nonn.documents import Share, Whole
from nonn.errors import PartitionError
from nonn.fusion import RidgePerSet, gram
from nonn.partition import METHODS, Partition, load_partitioner
from nonn.partition.graph import GRAPHS, FilterGraph, build_graph, correlation
from nonn.partition.measures import Measures, measure
from nonn.reliability.subsets import MAX_DEVICES, mask_of, members

__all__ = [
    "GRAPHS",
    "SCHEMA",
    "ComparedData",
    "Outputs",
    "PartitionComparison",
    "PartitionRow",
    "ProbeRow",
    "compare",
    "missing_levels",
    "probe",
    "stability",
]

SCHEMA = 1
SEEDS = 10

_RIDGE = 1e-3  # λ of the probe, relative to the mean variance of a filter; the same for all rows
_SETS = 256  # sets of missing parts of one size; all of them up to M = 10


@dataclass(frozen=True)
class Outputs:
    """The teacher's outputs on a split.

    Attributes:
        activations: spatial means of the final filters [n, C].
        logits: [n, K].
        labels: [n].
    """

    activations: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """Accuracy of the teacher's filters with some of the parts missing.

    Attributes:
        missing: parts that are missing.
        subsets: number of sets of missing parts that were evaluated.
        mean: mean accuracy of these sets.
        worst: accuracy of the worst set.
    """

    missing: Whole
    subsets: Whole
    mean: Share
    worst: Share


@dataclass(frozen=True)
class PartitionRow:
    """One method on one graph.

    Attributes:
        method: the partitioner.
        graph: kind of the filter graph.
        measures: measures of the cut with the experiment's seed; None where the method could not cut this graph.
        stability: mean adjusted Rand index over all pairs of ten seeds, in [−1, 1].
        seconds: time of one cut, mean over the seeds.
        probe: accuracy with 0, half and all but one of the parts missing; see ``probe``.
        error: why the method could not cut this graph.
    """

    method: str
    graph: str
    measures: Measures | None = None
    stability: float = 0.0
    seconds: float = 0.0
    probe: tuple[ProbeRow, ...] = ()
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class ComparedData:
    """The samples of a comparison.

    Attributes:
        name: name of the data set.
        split: the split that the probe is evaluated on.
        samples: number of samples of that split.
        fit: number of training samples that the probe is fitted to.
    """

    name: str
    split: str
    samples: Whole
    fit: Whole


@dataclass(frozen=True, kw_only=True)
class PartitionComparison:
    """compare.json: every method on every graph.

    Attributes:
        schema: version of this document.
        experiment: name of the experiment.
        teacher: network of the teacher.
        teacher_accuracy: accuracy of the teacher on the same samples.
        data: the samples.
        parts: M.
        seed: seed of the cut that is measured.
        machine: processor and versions.
        code_version: version of nonn, with the commit.
        rows: by graph, then by method.
    """

    schema: Whole
    experiment: str
    teacher: str
    teacher_accuracy: Share
    data: ComparedData
    parts: Whole
    seed: Whole
    machine: Mapping[str, str]
    code_version: str
    rows: tuple[PartitionRow, ...]


def compare(
    fit: Outputs,
    held_out: Outputs,
    config: GraphConfig,
    parts: int,
    seed: int,
    progress: Callable[[int, str], None] | None = None,
) -> list[PartitionRow]:
    """Compares every method on every graph.

    Args:
        fit: the teacher on the training split; the probe is fitted to it.
        held_out: the teacher on the held-out split; graphs are built from it and the probe is evaluated on it.
        config: options of the graphs; its kind is ignored.
        parts: M.
        seed: seed of the cut that is measured; stability uses this seed and the next nine.
        progress: called with rows done and the method.

    Returns:
        Rows by graph, then by method. A method that cannot cut a graph gives a row with its error.

    Raises:
        MissingExtraError: a package that a method needs is not installed.
    """
    strength = correlation(held_out.activations)
    rows: list[PartitionRow] = []
    for kind in GRAPHS:
        graph = build_graph(replace(config, kind=kind), held_out.activations)
        for method in METHODS:
            rows.append(_row(method, graph, strength, fit, held_out, parts, seed))
            if progress is not None:
                progress(len(rows), f"{method} on {kind}")
    return rows


def _row(
    method: str,
    graph: FilterGraph,
    strength: NDArray[np.float64],
    fit: Outputs,
    held_out: Outputs,
    parts: int,
    seed: int,
) -> PartitionRow:
    """Cuts with ten seeds and measures the first."""
    cut = load_partitioner(method)
    try:
        start = time.perf_counter()
        made = [cut(graph, parts, seed + k) for k in range(SEEDS)]
        seconds = (time.perf_counter() - start) / SEEDS
    except PartitionError as exc:
        return PartitionRow(method, graph.kind, error=str(exc))
    return PartitionRow(
        method,
        graph.kind,
        measure(made[0], graph, strength),
        stability(made),
        seconds,
        probe(made[0], fit, held_out, seed),
    )


def stability(partitions: Sequence[Partition]) -> float:
    """Mean adjusted Rand index over all pairs of partitions of the same filters; dropped filters form a further part.

    Args:
        partitions: at least two.
    """
    labels = []
    for partition in partitions:
        label = np.full(partition.num_filters, -1)
        for number, part in enumerate(partition.parts):
            label[list(part)] = number
        labels.append(label)
    return float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(labels, 2)]))


def missing_levels(parts: int) -> tuple[int, ...]:
    """Numbers of missing parts that the probe evaluates: 0, half (rounded down), all but one."""
    return tuple(sorted({0, parts // 2, parts - 1}))


def probe(partition: Partition, fit: Outputs, held_out: Outputs, seed: int) -> tuple[ProbeRow, ...]:
    """Accuracy of the teacher's filters on the held-out split when whole parts are missing.

    Args:
        partition: partition of the C filters.
        fit: outputs that the ridge is fitted to.
        held_out: outputs that the ridge is evaluated on.
        seed: seed of the choice of sets, where there are more than 256 of one size.

    Returns:
        A row for each number of missing parts.

    Raises:
        PartitionError: more parts than sets are enumerated for.
    """
    if partition.num_parts > MAX_DEVICES:
        raise PartitionError(f"partition.parts = {partition.num_parts}: the probe supports at most {MAX_DEVICES}")
    order = np.concatenate([np.array(part) for part in partition.parts])
    sums = gram(fit.activations[:, order], fit.logits)
    head = RidgePerSet(*sums, _RIDGE, partition.sizes)
    features = [held_out.activations[:, list(part)] for part in partition.parts]
    rng = np.random.default_rng(seed)
    rows = []
    for missing in missing_levels(partition.num_parts):
        sets = [mask_of(s) for s in combinations(range(partition.num_parts), partition.num_parts - missing)]
        if len(sets) > _SETS:
            sets = rng.choice(sets, _SETS, replace=False).tolist()
        right = [
            (head.logits({i: features[i] for i in members(mask)}).argmax(axis=1) == held_out.labels).mean()
            for mask in sets
        ]
        mean, worst = float(np.mean(right)), float(np.min(right))
        rows.append(ProbeRow(missing=missing, subsets=len(sets), mean=mean, worst=worst))
    return tuple(rows)
