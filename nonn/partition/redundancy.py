"""Redundancy: the parts that each device learns, so that its filters are not lost with it.

Device i of N learns the parts i, i + 1, …, i + r − 1, all modulo M: M parts and an overlap of r.

===================  =============================================================================================
M parts, overlap r   what it is
===================  =============================================================================================
M = N, r = 1         NoNN (Bhardwaj et al. 2019): every filter has one device
M ≤ N/2, r = 1       replicas (Jeong, Park, Yang 2021): every part has ⌊N/M⌋ or ⌈N/M⌉ devices
M = N, r > 1         cyclic overlap: every filter has r devices, and no two devices learn the same
M = 1 or r = M       full-task copies: every device learns every filter
===================  =============================================================================================

At the same N, M = N with overlap r and M = N/r replicas teach every filter to r devices and send the same number of
features. Where devices fail independently and alike, the same share of filters survives on average; with
overlap the worst case is better: if half of eight devices fail and r = 2, at least five eighths of the filters remain,
with replicas one half.

NumPy only; a design is a rule, so nothing is random and only M and r are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from nonn.errors import PartitionError
from nonn.partition.partition import Partition

__all__ = ["Design", "filters_of_device"]


@dataclass(frozen=True)
class Design:
    """M parts, of which every device learns r consecutive ones.

    Attributes:
        num_parts: M.
        overlap: r, from 1 to M.

    Raises:
        PartitionError: M is below 1, or r is not between 1 and M.
    """

    num_parts: int
    overlap: int = 1

    def __post_init__(self) -> None:
        if self.num_parts < 1:
            raise PartitionError(f"partition.parts = {self.num_parts}: must be at least 1")
        if not 1 <= self.overlap <= self.num_parts:
            raise PartitionError(
                f"partition.overlap = {self.overlap}: must be between 1 and the number of parts ({self.num_parts})"
            )

    def parts_of_device(self, num_devices: int) -> tuple[tuple[int, ...], ...]:
        """Parts that each device learns, its own first: N tuples of r.

        Raises:
            PartitionError: there are too few devices, so that no device learns some part.
        """
        taught = tuple(tuple((i + k) % self.num_parts for k in range(self.overlap)) for i in range(num_devices))
        untaught = sorted(set(range(self.num_parts)).difference(*taught))
        if untaught:
            raise PartitionError(
                f"partition.parts = {self.num_parts}: {num_devices} devices with overlap {self.overlap} leave "
                f"part {untaught[0]} without a device; use fewer parts or a larger overlap"
            )
        return taught

    def devices_of_part(self, num_devices: int) -> tuple[tuple[int, ...], ...]:
        """Devices that learn each part, ascending: M tuples.

        Raises:
            PartitionError: no device learns some part.
        """
        taught = self.parts_of_device(num_devices)
        return tuple(tuple(i for i, parts in enumerate(taught) if j in parts) for j in range(self.num_parts))

    def group_of_device(self, num_devices: int) -> tuple[int, ...]:
        """Group of each device [N], from 0. Devices of one group learn the same filters, so they can be averaged.

        Raises:
            PartitionError: no device learns some part.
        """
        self.parts_of_device(num_devices)
        return tuple(0 if self.overlap == self.num_parts else i % self.num_parts for i in range(num_devices))


def filters_of_device(design: Design, partition: Partition, num_devices: int) -> tuple[tuple[int, ...], ...]:
    """Filters that each device learns, ascending: N tuples.

    Raises:
        PartitionError: the partition has another number of parts than the design, or no device learns some part.
    """
    if partition.num_parts != design.num_parts:
        raise PartitionError(
            f"the partition has {partition.num_parts} parts and the design {design.num_parts}: cut the filters again"
        )
    return tuple(
        tuple(sorted(c for j in parts for c in partition.parts[j])) for parts in design.parts_of_device(num_devices)
    )
