"""Enumeration for heads with separate weights for each subset, which share no work.

The lower bound is one product per subset: Σ_{i∈S} d_i · K multiplications per sample, where an additive head needs K
additions and a ridge d_i · K. The savings are elsewhere: features are gathered and converted once, the product runs in
float32 and in blocks that stay in the cache, and its result is compared in place.
"""

from __future__ import annotations

import numpy as np

from nonn.enumeration.counter import UNIT_ROUNDOFF, Counter
from nonn.fusion import LinearHead

__all__ = ["count_linear"]

_BLOCK = 1024  # samples at once: logits of 100 classes are 400 kB


def count_linear(head: LinearHead, counter: Counter) -> None:
    """Counts the correct answers of all 2^N sets.

    Args:
        head: a head with ``z_S = concat(f_i, i in S) · W_S + b_S``.
        counter: receives the counts.
    """
    rows, sets = counter.answerable, 1 << head.num_devices
    features = np.concatenate([f[rows].astype(np.float64) for f in counter.features], axis=1)
    # Features less their mean, which moves into the bias: an offset would cost digits.
    mean = features.mean(axis=0) if len(rows) else np.zeros(features.shape[1])
    centred = np.ascontiguousarray((features - mean).astype(np.float32).T)
    blocks = [slice(start, min(start + _BLOCK, len(rows))) for start in range(0, len(rows), _BLOCK)]
    labels = counter.labels[rows]
    own = [labels[block] * (block.stop - block.start) + np.arange(block.stop - block.start) for block in blocks]
    peaks = np.abs(centred).max(axis=1, initial=0).astype(np.float64)
    margins = np.empty((1, len(rows)), dtype=np.float32)
    for mask in range(1, sets):
        columns = head.rows(mask)
        weight, bias = head.weights(mask, keep=False)
        centre = bias + mean[columns] @ weight
        product, offset = np.ascontiguousarray(weight.T.astype(np.float32)), centre.astype(np.float32)[:, None]
        for block, true in zip(blocks, own, strict=True):
            logits = product @ centred[columns, block]
            logits += offset
            flat = logits.reshape(-1)
            true_logit = flat[true]
            flat[true] = -np.inf
            np.subtract(logits.max(axis=0), true_logit, out=margins[0, block])
        # Features, weights and the sum of D_S + 1 products are rounded, for two logits; the reference rounds both too.
        height = np.abs(weight).T @ peaks[columns] + np.abs(centre) + np.abs(bias)
        doubt = np.full((1, 1), 2 * (len(columns) + 6) * UNIT_ROUNDOFF * height.max(), dtype=np.float32)
        counter.judge(np.array([mask]), rows, margins, doubt)
        counter.report((mask + 1) / sets)
