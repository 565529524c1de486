"""Which subsets of many devices are evaluated: all with few failures, and draws of failure laws among the others.

Few failures are three up to 66 devices, which makes 50,000 subsets. ``nonn.reliability.sampled`` is the table of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nonn.reliability.laws.base import Law

__all__ = ["COUNTED_FAILURES", "MOST_COUNTED", "MOST_DEVICES", "counted_failures", "draw_others", "few_failures"]

MOST_DEVICES = 256  # of a bundle
COUNTED_FAILURES = 3
MOST_COUNTED = 50_000  # subsets: all with up to 3 failures of 66 devices

_ATTEMPTS = 300  # draws of the law for each one wanted among subsets that were not counted


def counted_failures(num_devices: int, failed: int = COUNTED_FAILURES) -> int:
    """The largest number of failures, at most ``failed``, whose subsets are all counted: 50,000 in total."""
    total = 0
    for most in range(min(failed, num_devices) + 1):
        total += math.comb(num_devices, most)
        if total > MOST_COUNTED:
            return most - 1
    return min(failed, num_devices)


def few_failures(num_devices: int, failed: int) -> Iterator[tuple[int, ...]]:
    """The failed devices of every subset with at most this many failures, by number of failures."""
    for count in range(failed + 1):
        yield from combinations(range(num_devices), count)


def draw_others(law: Law, failed: int, draws: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draws of a law among the subsets with more failures [m, N]: fewer than requested where these are rare."""
    found, missing = [np.empty((0, law.num_devices), dtype=bool)], draws
    for _ in range(_ATTEMPTS):
        if missing <= 0:
            break
        up = law.draw(rng, draws)
        found.append(up[(~up).sum(axis=1) > failed][:missing])
        missing -= len(found[-1])
    return np.concatenate(found)
