"""Enumeration for the masked head: devices' terms are computed once and partial sums are shared along a tree.

A subset costs one addition of H + K floats and the product with the readout, H · K multiplications a sample, instead of
the products of all its features. Sums run in the order of the devices, as in the head itself, in float64.

Limit: a product of a block of samples may differ from that of the whole batch in its last bits, so an exact tie between
two classes may be decided differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nonn.enumeration.counter import Counter
from nonn.fusion.head import FloatArray
from nonn.fusion.masked import MaskedHead

__all__ = ["count_masked"]

_BLOCK = 1024  # samples at once: a partial sum of 512 hidden units and 100 classes is 5 MB


def count_masked(head: MaskedHead, counter: Counter) -> None:
    """Counts the correct answers of all 2^N sets.

    Args:
        head: the fusion.
        counter: receives the counts.
    """
    for start in range(0, len(counter.rows), _BLOCK):
        rows = counter.rows[start : start + _BLOCK]
        terms = [head.term(i, features[rows]) for i, features in enumerate(counter.features)]
        for mask, total in _sums(terms):
            right = head.from_sum(mask, total).astype(np.float32).argmax(axis=1) == counter.labels[rows]
            counter.count(np.array([mask]), rows, right[None])
        counter.report(min(1.0, (start + _BLOCK) / len(counter.rows)))


def _sums(
    terms: Sequence[FloatArray], device: int = 0, mask: int = 0, total: FloatArray | None = None
) -> Iterator[tuple[int, FloatArray]]:
    """Every subset but the empty one with the sum of its terms, depth first; devices are added in ascending order."""
    if device < len(terms):
        yield from _sums(terms, device + 1, mask, total)
        grown = terms[device] if total is None else total + terms[device]
        yield from _sums(terms, device + 1, mask | 1 << device, grown)
    elif total is not None:
        yield mask, total
