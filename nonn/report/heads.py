"""The cost of a fusion head: its size in the bundle, and the time until a new subset of devices can be fused."""

from __future__ import annotations

import time

from nonn.bundle import Bundle
from nonn.bundle.manifest import FUSION, MANIFEST
from nonn.fusion import Head, head_from_arrays
from nonn.reliability.subsets import sets_by_survivors
from nonn.report.document import HeadReport

__all__ = ["head_report", "solving_ms"]

_SETS = 3  # subsets of each size that are timed


def head_report(bundle: Bundle, *, timed: bool = False) -> HeadReport:
    """The cost of a bundle's head.

    Args:
        bundle: the bundle.
        timed: measure the time to solve a subset on this machine.
    """
    files = [MANIFEST, *bundle.manifest.files, *(student.file for student in bundle.manifest.students)]
    return HeadReport(
        kind=bundle.head.kind,
        bytes=(bundle.path / FUSION).stat().st_size,
        bundle_bytes=sum((bundle.path / name).stat().st_size for name in files),
        solve_ms=solving_ms(bundle.head) if timed else None,
    )


def solving_ms(head: Head) -> float:
    """The longest time to solve a subset, of up to three of each size; ms.

    The subset of all devices is solved before: a running aggregator has it too.
    """
    fresh = head_from_arrays(head.to_arrays())
    fresh.solve((1 << head.num_devices) - 1)
    longest = 0.0
    for _, masks in sets_by_survivors(head.num_devices, _SETS, 0)[1:]:
        for mask in masks:
            start = time.perf_counter()
            fresh.solve(mask)
            longest = max(longest, time.perf_counter() - start)
    return 1e3 * longest
