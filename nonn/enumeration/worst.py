"""Searches for subsets that are worse than the sampled ones.

A local search over all sizes at once. A round takes the worst known subset of each size and counts neighbours of it:
one more device fails, which gives a subset of the next size, or one is up again. The devices that matter most in the
sampled subsets fail first, and are restored last. Later rounds start from what earlier ones found.

Limits: what it finds is the worst found. A few random subsets of a size miss the worst by far, since it fails exactly
the devices that matter; a search comes closer, but nothing shows that there is no worse subset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.subsets import masks_of

__all__ = ["NEIGHBOURS", "ROUNDS", "search_worst"]

ROUNDS = 4
NEIGHBOURS = 1024  # subsets that a round counts, over all sizes

IntArray = NDArray[np.int64]


def search_worst(
    up: NDArray[np.bool_],
    correct: IntArray,
    count: Callable[[list[int]], IntArray],
    sizes: Sequence[int],
    *,
    rounds: int = ROUNDS,
    most: int | None = None,
) -> dict[int, tuple[int, int]]:
    """Subsets that are worse than the known ones.

    Args:
        up: the devices of the known subsets, some of each number of failures [m, N].
        correct: their correct samples [m].
        count: from masks to their correct samples.
        sizes: numbers of failed devices to search.
        rounds: number of rounds.
        most: neighbours of each size that a round counts; by default ``NEIGHBOURS`` over all sizes.

    Returns:
        Number of failed devices → mask and correct samples, where a worse subset was found.
    """
    n, failures = up.shape[1], (~up).sum(axis=1)
    order = np.argsort(-_loss(up, correct, failures, sizes), kind="stable").tolist()
    known = masks_of(up).tolist()
    worst = {}
    for failed in range(n):
        places = np.flatnonzero(failures == failed)
        if len(places):
            place = int(places[correct[places].argmin()])
            worst[failed] = known[place], int(correct[place])
    found: dict[int, tuple[int, int]] = {}
    tried, half = set(known), max(1, (most or max(2, NEIGHBOURS // n)) // 2)
    for _ in range(rounds):
        masks = []
        for failed in sizes:
            for neighbours in _neighbours(worst, failed, order):
                new = [mask for mask in neighbours if mask not in tried][:half]
                tried.update(new)
                masks += new
        if not masks:
            break
        for mask, right in zip(masks, count(masks).tolist(), strict=True):
            failed = n - mask.bit_count()
            if right < worst[failed][1]:
                worst[failed] = found[failed] = mask, right
    return found


def _neighbours(worst: dict[int, tuple[int, int]], failed: int, order: Sequence[int]) -> Iterator[list[int]]:
    """Subsets of one size next to the worst known ones with one failure less, and with one more, likely ones first."""
    if failed - 1 in worst:
        mask = worst[failed - 1][0]
        yield [mask & ~(1 << i) for i in order if mask >> i & 1]
    if failed + 1 in worst:
        mask = worst[failed + 1][0]
        yield [mask | 1 << i for i in reversed(order) if not mask >> i & 1]


def _loss(up: NDArray[np.bool_], correct: IntArray, failures: IntArray, sizes: Sequence[int]) -> NDArray[np.float64]:
    """How much better the known subsets of these sizes are with each device than without it [N]."""
    chosen = np.isin(failures, sizes)
    up, correct, failures = up[chosen], correct[chosen], failures[chosen]
    subsets = np.bincount(failures).clip(1)
    mean = np.bincount(failures, correct) / subsets
    share = 1 - failures / up.shape[1]
    result: NDArray[np.float64] = (correct - mean[failures]) @ (up - share[:, None])
    return result
