"""What the finite test set says about the rows of a study: intervals over samples, paired between rows.

A run counts how many subsets get each sample right (``HeadResult.right``). Runs of other seeds may test other samples:
a sample is identified by a digest of its content, its score is the mean over the runs that tested it, and two rows are
compared on the samples that both have. The training's own spread over seeds is not part of the interval; it is ``sd``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nonn.experiment.evaluation import Evaluation
from nonn.reliability.intervals import difference_interval, mean_interval
from nonn.report.document import Comparison

__all__ = ["Scores", "compared", "digests", "expected_intervals", "intervals", "scores_of"]

_BYTES = 6  # of a digest: numbers in JSON are exact below 2^53
Scores: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64]]


def digests(inputs: NDArray[Any], labels: NDArray[Any]) -> tuple[int, ...]:
    """A number for each sample, from its content [n]."""
    return tuple(
        int.from_bytes(hashlib.blake2b(x.tobytes() + str(y).encode(), digest_size=_BYTES).digest(), "big")
        for x, y in zip(inputs, labels.tolist(), strict=True)
    )


def scores_of(runs: Sequence[Evaluation], head: str) -> Scores | None:
    """Digests of the tested samples [u], and the share of subsets that get each right by number of failures [N, u].

    None where a run does not record them, as in results of older versions.
    """
    tables = [run.heads[head] for run in runs]
    if not all(run.test and table.right for run, table in zip(runs, tables, strict=True)):
        return None
    samples, place = np.unique(np.concatenate([run.test for run in runs]), return_inverse=True)
    right = np.concatenate([np.array(table.right) for table in tables], axis=1)
    subsets = np.array([comb(len(right), failed) for failed in range(len(right))])
    tested = np.bincount(place)
    sums = np.stack([np.bincount(place, row) for row in right])
    return samples.astype(np.int64), sums / tested / subsets[:, None]


def intervals(scores: Scores, means: Sequence[float]) -> list[tuple[float, float]]:
    """Intervals of mean accuracies for 0 to N − 1 failed devices."""
    low, high = mean_interval(scores[1], mean=means)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def expected_intervals(scores: Scores, expected: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Intervals of expected accuracies by the probability with which every device fails, independently."""
    n, found = len(scores[1]), {}
    for text, mean in expected.items():
        p = float(text)
        chance = np.array([comb(n, failed) * p**failed * (1 - p) ** (n - failed) for failed in range(n)])
        low, high = mean_interval(chance @ scores[1], mean=mean)
        found[text] = float(low), float(high)
    return found


def compared(scores: Scores, means: Sequence[float], first: Scores, of_first: Sequence[float]) -> list[Comparison]:
    """Mean accuracies of one row less those of another, with intervals from the samples that both tested."""
    _, mine, other = np.intersect1d(scores[0], first[0], assume_unique=True, return_indices=True)
    count = min(len(means), len(of_first))
    if not len(mine):
        return []
    differences = np.subtract(means[:count], of_first[:count])
    low, high = difference_interval(scores[1][:count, mine] - first[1][:count, other], mean=differences)
    return [
        Comparison(failed=failed, difference=float(difference), interval=(float(a), float(b)), paired=True)
        for failed, (difference, a, b) in enumerate(zip(differences, low, high, strict=True))
    ]
