"""Enumeration for the masked head: the terms of the devices are computed once for all subsets.

A subset costs a sum of its terms, H + K floats each, and the product with the readout, H · K multiplications a sample,
instead of the products of all its features. Sums run as in the head itself, in float64.

Limit: a product of a block of samples may differ from that of the whole batch in its last bits, so an exact tie between
two classes may be decided differently.
"""

from __future__ import annotations

import numpy as np

from nonn.enumeration.counter import Counter
from nonn.fusion.masked import MaskedHead
from nonn.reliability.subsets import members

__all__ = ["count_masked"]

_BLOCK = 1024  # samples at once: a term of 512 hidden units and 100 classes is 5 MB


def count_masked(head: MaskedHead, counter: Counter) -> None:
    """Counts the correct answers of all 2^N sets.

    Args:
        head: the fusion.
        counter: receives the counts.
    """
    for start in range(0, len(counter.rows), _BLOCK):
        rows = counter.rows[start : start + _BLOCK]
        terms = [head.term(i, features[rows]) for i, features in enumerate(counter.features)]
        for mask in range(1, 1 << head.num_devices):
            logits = head.from_terms(mask, [terms[i] for i in members(mask)]).astype(np.float32)
            counter.count(np.array([mask]), rows, (logits.argmax(axis=1) == counter.labels[rows])[None])
        counter.report(min(1.0, (start + _BLOCK) / len(counter.rows)))
