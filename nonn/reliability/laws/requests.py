"""Failure laws of a single request, without a clock."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nonn.reliability.laws.base import FloatArray, IntArray, Law
from nonn.reliability.subsets import all_masks, mask_of, membership, probabilities

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

    def probabilities(self) -> FloatArray:
        """Product over devices."""
        all_masks(self.num_devices)
        return probabilities(self.p)

    def sample(self, rng: np.random.Generator, count: int) -> IntArray:
        """Draws each device independently, for any N."""
        up = rng.random((count, self.num_devices)) >= self.p
        masks: IntArray = up @ (1 << np.arange(self.num_devices, dtype=np.int64))
        return masks


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
        self.groups, self.p_group, self.p = [mask_of(g) for g in groups], p_group, p

    def probabilities(self) -> FloatArray:
        """Applies one cause after the other; a single device is a group of one."""
        result = np.zeros(len(all_masks(self.num_devices)))
        result[-1] = 1
        causes = [*zip(self.groups, self.p_group, strict=True), *((1 << i, p) for i, p in enumerate(self.p))]
        for mask, p in causes:
            result = knock_out(result, mask, float(p))
        return result

    def sample(self, rng: np.random.Generator, count: int) -> IntArray:
        """Draws causes and devices, for any N."""
        masks = Independent(self.p).sample(rng, count)
        for mask, p in zip(self.groups, self.p_group, strict=True):
            masks = np.where(rng.random(count) < p, masks & ~mask, masks)
        return masks


class KOfN(Law):
    """Exactly k devices are down, any k equally likely."""

    kind = "k-of-n"

    def __init__(self, k: int, num_devices: int, text: str = "") -> None:
        super().__init__(num_devices, text)
        self.k = k

    def probabilities(self) -> FloatArray:
        """Uniform over the sets of N − k devices."""
        count = membership(self.num_devices).sum(axis=1)
        result: FloatArray = (count == self.num_devices - self.k) / math.comb(self.num_devices, self.k)
        return result

    def sample(self, rng: np.random.Generator, count: int) -> IntArray:
        """Draws which devices stay up, for any N."""
        order = rng.random((count, self.num_devices)).argsort(axis=1)[:, self.k :]
        masks: IntArray = (1 << order.astype(np.int64)).sum(axis=1)
        return masks


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
