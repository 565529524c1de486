"""Failure laws of a single request, without a clock."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nonn.reliability.laws.base import BoolArray, FloatArray, Law
from nonn.reliability.subsets import all_masks, mask_of

__all__ = ["GilbertElliott", "Groups", "Independent", "KOfN", "knock_out"]


def knock_out(probability: FloatArray, mask: int, p: float) -> FloatArray:
    """Makes the devices of a mask fail together with probability p.

    Args:
        probability: probability of each subset [2^N].
        mask: devices that share the cause.
        p: probability of the cause.

    Returns:
        The new probability of each subset [2^N].
    """
    result = (1 - p) * probability
    np.add.at(result, np.arange(len(probability)) & ~mask, p * probability)
    return result


class Independent(Law):
    """Every device fails independently of the others.

    Args:
        p: probability that device i does not answer [N].
    """

    kind = "independent"

    def __init__(self, p: FloatArray, text: str = "") -> None:
        super().__init__(len(p), text)
        self.p = np.asarray(p, dtype=float)

    def probability_of(self, up: BoolArray) -> FloatArray:
        """Product over devices."""
        result: FloatArray = np.where(up, 1 - self.p, self.p).prod(axis=1)
        return result

    def draw(self, rng: np.random.Generator, count: int) -> BoolArray:
        """Draws each device independently."""
        return rng.random((count, self.num_devices)) >= self.p


class Groups(Law):
    """Common causes in addition to individual failures: a battery or access point whose failure takes a group down.

    Args:
        groups: devices of each group; a device may be in several.
        p_group: probability that the cause of group g strikes [G].
        p: probability that device i fails by itself [N].
    """

    kind = "groups"

    def __init__(self, groups: Sequence[Sequence[int]], p_group: FloatArray, p: FloatArray, text: str = "") -> None:
        super().__init__(len(p), text)
        self.groups, self.p_group, self.p = [tuple(g) for g in groups], p_group, p

    def probability_of(self, up: BoolArray) -> FloatArray:
        """A group with a device that answers was not struck; a sum over the others' causes gives the rest."""
        result = np.zeros(len(up))
        silent = np.array([~up[:, list(group)].any(axis=1) for group in self.groups]).reshape(len(self.groups), len(up))
        for pattern in np.unique(silent, axis=1).T:
            rows = (silent == pattern[:, None]).all(axis=0)
            result[rows] = self._probability(up[rows], np.flatnonzero(pattern).tolist())
        return result

    def _probability(self, up: BoolArray, silent: Sequence[int]) -> FloatArray:
        """Of subsets in which no device of the same groups answers [m]."""
        spared, total = float(np.delete(1 - self.p_group, silent).prod()), np.zeros(len(up))
        for strikes in range(1 << len(silent)):
            struck = [number for place, number in enumerate(silent) if strikes >> place & 1]
            down = [i for number in struck for i in self.groups[number]]
            own = np.where(up, 1 - self.p, self.p)
            own[:, down] = 1.0
            causes = [self.p_group[k] if k in struck else 1 - self.p_group[k] for k in silent]
            total += math.prod(causes) * own.prod(axis=1)
        return spared * total

    def probabilities(self) -> FloatArray:
        """Applies one cause after the other; a single device is a group of one."""
        result = np.zeros(len(all_masks(self.num_devices)))
        result[-1] = 1
        causes = [*self.groups, *((i,) for i in range(self.num_devices))]
        for devices, p in zip(causes, [*self.p_group, *self.p], strict=True):
            result = knock_out(result, mask_of(devices), float(p))
        return result

    def draw(self, rng: np.random.Generator, count: int) -> BoolArray:
        """Draws causes and devices."""
        up = Independent(self.p).draw(rng, count)
        for group, p in zip(self.groups, self.p_group, strict=True):
            up[np.ix_(rng.random(count) < p, group)] = False
        return up


class KOfN(Law):
    """Exactly k devices are down, any k equally likely."""

    kind = "k-of-n"

    def __init__(self, k: int, num_devices: int, text: str = "") -> None:
        super().__init__(num_devices, text)
        self.k = k

    def probability_of(self, up: BoolArray) -> FloatArray:
        """Uniform over the sets of N − k devices."""
        result: FloatArray = (up.sum(axis=1) == self.num_devices - self.k) / math.comb(self.num_devices, self.k)
        return result

    def draw(self, rng: np.random.Generator, count: int) -> BoolArray:
        """Draws which devices stay up."""
        return rng.random((count, self.num_devices)).argsort(axis=1).argsort(axis=1) >= self.k


class GilbertElliott(Independent):
    """Links that alternate between good and bad: the long-run loss of one request.

    Links are independent of each other. A burst of bad requests lasts 1 / r requests on average.

    Args:
        p: probability per request that a good link turns bad [N].
        r: probability per request that a bad link turns good [N].
        loss_good: loss of a request on a good link [N].
        loss_bad: on a bad link [N].

    Source: Gilbert 1960, "Capacity of a burst-noise channel"; Elliott 1963.
    """

    kind = "gilbert-elliott"

    def __init__(
        self, p: FloatArray, r: FloatArray, loss_good: FloatArray, loss_bad: FloatArray, text: str = ""
    ) -> None:
        bad = p / (p + r)
        super().__init__(bad * loss_bad + (1 - bad) * loss_good, text)
