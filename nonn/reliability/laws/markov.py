"""Devices that fail and are repaired: independent two-state Markov chains in continuous time.

A common cause, such as an access point or a charger, is one more chain: its devices answer only while it is up. The
chain of devices and causes together has the same form as that of devices alone, and so has its first passage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError
from nonn.reliability.laws.base import FirstPassage, FloatArray, TimedLaw
from nonn.reliability.laws.first_passage import mean_first_passage
from nonn.reliability.laws.requests import Groups, Independent
from nonn.reliability.subsets import mask_of

__all__ = ["MAX_COMPONENTS", "Markov", "MarkovGroups"]

MAX_COMPONENTS = 20  # devices and causes of a first passage: a million states, some GB


class Markov(TimedLaw, Independent):
    """Up and down with exponential times.

    Args:
        mtbf_s: mean time that device i stays up before it fails, in seconds [N].
        mttr_s: mean time until it is repaired, in seconds [N].

    ``p`` is the share of time that a device is down in the long run, mttr / (mtbf + mttr).
    """

    kind = "markov"

    def __init__(self, mtbf_s: FloatArray, mttr_s: FloatArray, text: str = "") -> None:
        Independent.__init__(self, mttr_s / (mtbf_s + mttr_s), text)
        self.fail_rate, self.repair_rate = 1 / mtbf_s, 1 / mttr_s

    def first_passage(self, good: NDArray[np.bool_]) -> FirstPassage:
        """Mean first passage out of the good subsets, exact for any number of devices."""
        return FirstPassage.certain(mean_first_passage(self.fail_rate, self.repair_rate, good))


class MarkovGroups(TimedLaw, Groups):
    """Devices and common causes, all up and down with exponential times.

    Args:
        mtbf_s: mean time that device i stays up before it fails by itself, in seconds [N].
        mttr_s: mean time until it is repaired, in seconds [N].
        groups: devices of each cause; a device may have several.
        group_mtbf_s: mean time until cause g strikes [G].
        group_mttr_s: mean time until it has passed [G].
    """

    kind = "markov"

    def __init__(
        self,
        mtbf_s: FloatArray,
        mttr_s: FloatArray,
        groups: Sequence[Sequence[int]],
        group_mtbf_s: FloatArray,
        group_mttr_s: FloatArray,
        text: str = "",
    ) -> None:
        p, p_group = mttr_s / (mtbf_s + mttr_s), group_mttr_s / (group_mtbf_s + group_mttr_s)
        Groups.__init__(self, groups, p_group, p, text)
        self.fail_rate = 1 / np.concatenate([mtbf_s, group_mtbf_s])
        self.repair_rate = 1 / np.concatenate([mttr_s, group_mttr_s])

    def first_passage(self, good: NDArray[np.bool_]) -> FirstPassage:
        """Mean first passage out of the good subsets, exact: over the subsets of devices and causes that are up.

        Raises:
            ConfigError: more than 20 devices and causes.
        """
        n, components = self.num_devices, len(self.fail_rate)
        if components > MAX_COMPONENTS:
            raise ConfigError(
                f"law '{self.text}': a first passage of {n} devices and {components - n} groups; at most "
                f"{MAX_COMPONENTS} together: leave out --level, or merge groups"
            )
        up = np.arange(1 << components, dtype=np.int64)
        answering = up & (1 << n) - 1
        for number, group in enumerate(self.groups):
            struck = up >> (n + number) & 1 == 0
            answering[struck] &= ~mask_of(group)
        return FirstPassage.certain(mean_first_passage(self.fail_rate, self.repair_rate, good[answering]))
