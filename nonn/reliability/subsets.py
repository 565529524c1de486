"""Subsets of devices as bit masks, and their probabilities under independent failures.

A subset S of the N devices is a bit mask: bit i is set when device i answered. ``nonn.reliability.table`` has the
accuracy of each subset.

Limits: all subsets are enumerated for N ≤ 16 (65,536 subsets). The empty subset gives no answer, so it has no correct
sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError

__all__ = [
    "MAX_DEVICES",
    "ROUNDING",
    "all_masks",
    "independent_law",
    "mask_of",
    "masks_of",
    "members",
    "membership",
    "membership_of",
    "probabilities",
    "sets_by_survivors",
]

MAX_DEVICES = 16  # whose subsets are all enumerated
ROUNDING = 1e-12  # of a sum of 2^N probabilities: a bound met exactly must not be missed by the last bit

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def all_masks(num_devices: int) -> IntArray:
    """All subsets of the devices, as masks 0 … 2^N − 1 [2^N]."""
    if not 1 <= num_devices <= MAX_DEVICES:
        raise ShapeError(f"{num_devices} devices: all subsets are enumerated for 1 to {MAX_DEVICES} devices")
    return np.arange(1 << num_devices, dtype=np.int64)


def mask_of(devices: Iterable[int]) -> int:
    """The mask of a set of device numbers."""
    mask = 0
    for device in devices:
        mask |= 1 << device
    return mask


def masks_of(up: NDArray[np.bool_]) -> NDArray[Any]:
    """Masks of subsets.

    Args:
        up: the devices of each subset [m, N].

    Returns:
        [m]: int64, and Python's own integers from 63 devices on.
    """
    num_devices = up.shape[1]
    if num_devices < 63:
        masks: IntArray = up @ (1 << np.arange(num_devices, dtype=np.int64))
        return masks
    packed = np.packbits(up, axis=1, bitorder="little")
    return np.array([int.from_bytes(row.tobytes(), "little") for row in packed], dtype=object)


def members(mask: int) -> tuple[int, ...]:
    """The device numbers in a mask, ascending."""
    return tuple(i for i in range(int(mask).bit_length()) if mask >> i & 1)


def membership(num_devices: int) -> NDArray[np.bool_]:
    """Whether each device is in each subset [2^N, N]."""
    return (all_masks(num_devices)[:, None] >> np.arange(num_devices) & 1).astype(bool)


def membership_of(masks: Sequence[int], num_devices: int) -> NDArray[np.bool_]:
    """Whether each device is in each of some subsets [m, N], any N; the inverse of ``masks_of``."""
    rows = [[mask >> i & 1 for i in range(num_devices)] for mask in masks]
    return np.array(rows, dtype=bool).reshape(-1, num_devices)


def sets_by_survivors(num_devices: int, at_most: int, seed: int) -> list[tuple[int, list[int]]]:
    """A sample of subsets that is stratified by the number of answering devices.

    Args:
        num_devices: N.
        at_most: subsets of each size; fewer where there are fewer, or where a draw beyond 16 devices repeats one.
        seed: seed of the choice.

    Returns:
        Number of answering devices, from N down to 1, and masks of that size, ascending.
    """
    rng, result = np.random.default_rng(seed), []
    if num_devices > MAX_DEVICES:
        for count in range(num_devices, 0, -1):
            chosen = {mask_of(rng.choice(num_devices, count, replace=False).tolist()) for _ in range(at_most)}
            result.append((count, sorted(chosen)))
        return result
    survivors = membership(num_devices).sum(axis=1)
    for count in range(num_devices, 0, -1):
        masks = np.flatnonzero(survivors == count)
        if len(masks) > at_most:
            masks = np.sort(rng.choice(masks, at_most, replace=False))
        result.append((count, masks.tolist()))
    return result


def probabilities(p_fail: FloatArray) -> FloatArray:
    """Probability of each subset when devices fail independently.

    Args:
        p_fail: probability that device i does not answer [N].

    Returns:
        [2^N], sums to 1.
    """
    answered = membership(len(p_fail))
    result: FloatArray = np.where(answered, 1 - p_fail, p_fail).prod(axis=1)
    return result


def independent_law(p_fail: Sequence[float]) -> str:
    """The failure law of devices that fail independently, as ``nonn-sim`` reads it.

    Args:
        p_fail: probability that device i does not answer [N].
    """
    different = dict.fromkeys(p_fail)
    shown = ", ".join(f"{p:g}" for p in (p_fail if len(different) > 1 else different))
    return f"independent p=[{shown}]" if len(different) > 1 else f"independent p={shown}"
