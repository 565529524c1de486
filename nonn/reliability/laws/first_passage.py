"""Mean first-passage time of many devices, by simulation with importance sampling.

The chain restarts whenever every device is up again. Its cycles are therefore independent, and ``mean = E[length of a
cycle, cut at its passage] / P(a cycle has a passage)``. Lengths are simulated without bias. A passage may occur once in
10^12 cycles, so the cycles that estimate its probability make the next failure as likely as the next repair, and each
is weighted by its likelihood ratio (balanced failure biasing). The error of a ratio of two independent means gives the
interval.

Source: Shahabuddin 1994, "Importance sampling for the simulation of highly reliable Markovian systems"; Goyal et al.
1992, "A unified framework for simulating Markovian models of highly dependable systems".
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.confidence import NORMAL_QUANTILE
from nonn.reliability.laws.base import FirstPassage, FloatArray

__all__ = ["simulated_first_passage"]

CYCLES = 100_000  # of each kind: intervals of a few per cent
BIAS = 0.5  # probability that the next change is a failure, while both are possible
ENOUGH = 1000  # passages in unbiased cycles beyond which weights would only add variance
_SEED = 0


def simulated_first_passage(
    fail_rate: FloatArray, repair_rate: FloatArray, good: NDArray[np.bool_], *, cycles: int = CYCLES, seed: int = _SEED
) -> FirstPassage:
    """Mean time until devices that fail and are repaired leave the good subsets.

    Args:
        fail_rate: failure rate of each device, per second [N].
        repair_rate: repair rate of each device, per second [N].
        good: whether each subset is good enough, which the full one must be [2^N].
        cycles: number of cycles simulated for the lengths, and again for the passages.
        seed: seed of the draws.

    Returns:
        The mean with its 95 % interval; the interval is [0, ∞) if no passage was found.
    """
    rng = np.random.default_rng(seed)
    # Devices that are down half of the time are rarely all up: cycles are long, and fewer of them suffice.
    p_full = float(np.prod(repair_rate / (fail_rate + repair_rate)))
    cycles = max(min(cycles, 1000), int(cycles * min(1.0, 30 * p_full)))
    length_s, seen = _cycles(rng, fail_rate, repair_rate, good, cycles, biased=False)
    rare = bool(np.count_nonzero(seen) < ENOUGH)
    _, fell = _cycles(rng, fail_rate, repair_rate, good, cycles, biased=rare)
    mean_length, p_fall = float(length_s.mean()), float(fell.mean())
    if p_fall == 0:
        return FirstPassage(math.inf, "simulated", 0.0, math.inf)
    mean_s = mean_length / p_fall
    # Relative errors of independent factors add in squares; the logarithm keeps the interval positive.
    squares = (length_s.var() / mean_length**2 + fell.var() / p_fall**2) / cycles
    factor = math.exp(NORMAL_QUANTILE * math.sqrt(squares))
    return FirstPassage(mean_s, "simulated", mean_s / factor, mean_s * factor)


def _cycles(
    rng: np.random.Generator,
    fail_rate: FloatArray,
    repair_rate: FloatArray,
    good: NDArray[np.bool_],
    count: int,
    *,
    biased: bool,
) -> tuple[FloatArray, FloatArray]:
    """Simulates cycles that start with every device up and end when all are up again, or at a passage.

    Returns:
        Expected length of each given its course, in seconds, and its weight if it ended in a passage, else 0; [count].
    """
    full = len(good) - 1
    length_s, fell = np.zeros(count), np.zeros(count)
    alive, up, weight = np.arange(count), np.ones((count, len(fail_rate)), dtype=bool), np.ones(count)
    bits = 1 << np.arange(len(fail_rate))
    while len(alive):
        rates = np.where(up, fail_rate, repair_rate)
        total = rates.sum(axis=1)
        # The mean holding time instead of a drawn one: the same expectation with less variance.
        length_s[alive] += 1 / total
        chances = rates / total[:, None]
        if biased:
            failing = (chances * up).sum(axis=1)
            mixed = (failing > 0) & (failing < 1)
            raised = np.where(mixed, BIAS, failing)
            lowered = np.where(mixed, 1 - BIAS, 1 - failing)
            # Balanced: every device that is up is equally likely to be the next to fail.
            drawn = np.where(
                up,
                (raised / np.maximum(up.sum(axis=1), 1))[:, None],
                chances * (lowered / np.where(mixed, 1 - failing, 1.0))[:, None],
            )
            # Where all are up, or all down, only one kind of change is possible.
            drawn = drawn / drawn.sum(axis=1, keepdims=True)
        else:
            drawn = chances
        edges = drawn.cumsum(axis=1)
        pick = (rng.random(len(alive))[:, None] * edges[:, -1:] >= edges).sum(axis=1).clip(max=len(fail_rate) - 1)
        each = np.arange(len(alive))
        weight *= chances[each, pick] / drawn[each, pick]
        up[each, pick] ^= True
        masks = up @ bits
        bad, over = ~good[masks], np.equal(masks, full)
        fell[alive[bad]] = weight[bad]
        going = ~(bad | over)
        alive, up, weight = alive[going], up[going], weight[going]
    return length_s, fell
