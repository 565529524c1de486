"""Places of tensors in one block of memory, which those share that are never live at the same time."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["places"]


def places(sizes: Sequence[int], lives: Sequence[tuple[int, int]], step: int = 1) -> list[int]:
    """Offsets of tensors: largest first, each at the lowest one that is free during its lifetime.

    Args:
        sizes: of the tensors.
        lives: the steps of the program at which each is used first and last; the ends belong to it.
        step: offsets are multiples of it.
    """
    found: dict[int, int] = {}
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        first, last = lives[number]
        taken = sorted(
            (offset, offset + sizes[other])
            for other, offset in found.items()
            if lives[other][0] <= last and first <= lives[other][1]
        )
        start = 0
        for low, high in taken:
            if start + sizes[number] <= low:
                break
            start = max(start, -(-high // step) * step)
        found[number] = start
    return [found[number] for number in range(len(sizes))]
