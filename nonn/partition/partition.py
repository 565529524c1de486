"""A partition of the teacher's filters, and what partitioners have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import PartitionError

__all__ = ["Partition", "check_parts", "parts_of_labels"]


@dataclass(frozen=True)
class Partition:
    """The filters of every part.

    Attributes:
        parts: filter indices of each part, ascending inside a part; no part is empty.
        num_filters: C; every index below it is in exactly one part or dropped.
        method: the partitioner that made it.
        dropped: filters that no student learns, ascending.

    Raises:
        PartitionError: a filter is missing, out of range or used twice, or a part is empty.
    """

    parts: tuple[tuple[int, ...], ...]
    num_filters: int
    method: str
    dropped: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(tuple(sorted(int(c) for c in part)) for part in self.parts))
        object.__setattr__(self, "dropped", tuple(sorted(int(c) for c in self.dropped)))
        if not self.parts:
            raise PartitionError("a partition needs at least one part")
        for number, part in enumerate(self.parts):
            if not part:
                raise PartitionError(f"part {number} has no filter: its student would have nothing to learn")
        owners: dict[int, str] = {}
        named = [(f"part {number}", part) for number, part in enumerate(self.parts)]
        for name, members in [*named, ("the dropped filters", self.dropped)]:
            for index in members:
                if not 0 <= index < self.num_filters:
                    raise PartitionError(f"{name}: filter {index} is not one of the {self.num_filters} filters")
                if index in owners:
                    raise PartitionError(f"filter {index} is in {owners[index]} and again in {name}")
                owners[index] = name
        missing = sorted(set(range(self.num_filters)) - owners.keys())
        if missing:
            raise PartitionError(f"{len(missing)} filters are in no part and not dropped, the first is {missing[0]}")

    @property
    def num_parts(self) -> int:
        """M."""
        return len(self.parts)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of filters of each part [M]."""
        return tuple(len(part) for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """The partition as values that ``json`` can write."""
        return {
            "method": self.method,
            "num_filters": self.num_filters,
            "parts": [list(part) for part in self.parts],
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Partition:
        """Reads the result of ``to_json``.

        Raises:
            PartitionError: a key is missing or has a wrong value, or the partition is invalid.
        """
        try:
            return cls(
                parts=tuple(tuple(part) for part in values["parts"]),
                num_filters=int(values["num_filters"]),
                method=str(values["method"]),
                dropped=tuple(values["dropped"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise PartitionError(f"not a partition ({type(exc).__name__}: {exc}); make it again") from exc


def check_parts(num_filters: int, parts: int) -> None:
    """Raises PartitionError where no partitioner could make that many parts of that many filters."""
    if parts < 1:
        raise PartitionError(f"partition.parts = {parts}: must be at least 1")
    if parts > num_filters:
        raise PartitionError(
            f"partition.parts = {parts}: the teacher's final layer has only {num_filters} filters; "
            f"use at most {num_filters} parts or a wider teacher"
        )


def parts_of_labels(labels: NDArray[np.integer[Any]], parts: int) -> tuple[tuple[int, ...], ...]:
    """Parts of a clustering, which may have empty clusters, ordered by their lowest filter.

    Args:
        labels: cluster of each filter [C], from 0 to M − 1.
        parts: M, at most C. An empty part gets the last filter of the part that is then the largest.
    """
    members = [np.flatnonzero(labels == part).tolist() for part in range(parts)]
    for part in members:
        if not part:
            part.append(max(members, key=len).pop())
    return tuple(sorted((tuple(part) for part in members), key=lambda part: part[0]))
