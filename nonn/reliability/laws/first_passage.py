"""Mean first-passage time of many devices, by simulation that rare falls do not slow down.

The chain is back at the start whenever every device is up again. So it lives through cycles that are independent of
each other, and ``mean = E[length of a cycle, cut at its fall] / P(a cycle has a fall)``. Lengths are simulated as they
are. Falls may be one in 10^12 cycles; in the cycles that look for them the next failure is made as likely as the next
repair, and each cycle is weighted by how much likelier that has made it (balanced failure biasing). The error of a
ratio of two independent means gives the interval.

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
ENOUGH = 1000  # falls in unbiased cycles: then weights would only add variance
_SEED = 0


def simulated_first_passage(
    fail_rate: FloatArray, repair_rate: FloatArray, good: NDArray[np.bool_], *, cycles: int = CYCLES, seed: int = _SEED
) -> FirstPassage:
    """Mean time until devices that fail and are repaired leave the good sets.

    Args:
        fail_rate: of each device, per second [N].
        repair_rate: likewise [N].
        good: whether a set is good enough, the full one among them [2^N].
        cycles: simulated for the lengths, and again for the falls.
        seed: of the draws.

    Returns:
        With its 95 % interval; its upper end is infinite where the falls that were found are too few to bound it.
    """
    rng = np.random.default_rng(seed)
    # Devices that are away half of the time are hardly ever all up: cycles are long, and fewer of them say as much.
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
    """Cycles from every device up to every device up, or to a fall.

    Returns:
        Expected length of each given its course, in seconds, and its weight if it ended in a fall, else 0; [count].
    """
    full = len(good) - 1
    length_s, fell = np.zeros(count), np.zeros(count)
    alive, up, weight = np.arange(count), np.ones((count, len(fail_rate)), dtype=bool), np.ones(count)
    bits = 1 << np.arange(len(fail_rate))
    while len(alive):
        rates = np.where(up, fail_rate, repair_rate)
        total = rates.sum(axis=1)
        # The mean holding time in place of a drawn one: the same expectation with less variance.
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
