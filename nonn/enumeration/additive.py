"""Enumeration for additive heads: logits that are a sum over devices, or over parts whose replicas are averaged.

With ``T_i = (f_i − c_i) W_i`` a subset has logits ``b + Σ_parts mean(T_i, i of the part that answered)``: for zero-fill
and mean-fill every device is a separate part; for rescaling all devices are one part, since N/|S| Σ f_i W_i is the mean
of N f_i W_i. With a single part, |S| z_S = Σ_{i∈S} (b + T_i) gives the same answers without a mean. The margins of the
other classes over the true one decide an answer, and they add up in the same way. Depth first, each subset costs one
addition to its prefix and one maximum over classes. Classes that cannot win in any subset, even with every device in
their favour, are dropped first; their number depends on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.enumeration.counter import UNIT_ROUNDOFF, Counter
from nonn.fusion import Head, LinearHead, MeanFill, ReplicaAverage, Rescale, ZeroFill

__all__ = ["AdditiveForm", "additive_form", "count_additive"]

Float32 = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_STATE = 100_000  # floats of one partial sum: larger exceeds the cache, smaller spends its time in calls (measured)
_TERMS = 1 << 25  # floats of all terms of the current samples: 134 MB
_LEAVES = 8  # margins of 2^8 subsets are judged at once


@dataclass(frozen=True)
class AdditiveForm:
    """A head as a sum over parts of means over devices.

    Attributes:
        parts: part of each device [N].
        bias: b [K].
        weights: W_i of each device, N arrays [d_i, K].
        centres: c_i of each device, N arrays [d_i].
    """

    parts: Sequence[int]
    bias: FloatArray
    weights: Sequence[FloatArray]
    centres: Sequence[FloatArray]


def additive_form(head: Head) -> AdditiveForm | None:
    """The head as a sum; None for any other kind of head."""
    devices = range(head.num_devices)
    # Exact types only: a subclass that fuses in another way must not be treated as its parent.
    if not isinstance(head, LinearHead) or type(head) not in (ZeroFill, MeanFill, Rescale, ReplicaAverage):
        return None
    parts: Sequence[int] = devices
    if isinstance(head, ReplicaAverage):
        parts = head.parts
    elif isinstance(head, Rescale):
        parts = [0] * head.num_devices
    centres = [np.zeros(width) for width in head.widths]
    if isinstance(head, MeanFill):
        centres = [head.mean[head.rows(1 << i)] for i in devices]
    # The weights of a single device are W_i; with Rescale they are N W_i, as its mean over S needs.
    weights = [head.weights(1 << i, keep=False)[0] for i in devices]
    return AdditiveForm(parts, head.weights(0, keep=False)[1], weights, centres)


def count_additive(form: AdditiveForm, counter: Counter) -> None:
    """Counts the correct answers of all 2^N sets.

    Args:
        form: the counter's head as a sum.
        counter: receives the counts.
    """
    pooled = len(set(form.parts)) == 1
    parts = range(len(form.parts)) if pooled else form.parts
    order = sorted(range(len(parts)), key=lambda i: parts[i])
    position_bits = np.arange(1 << len(order))[:, None] >> np.arange(len(order)) & 1
    masks = position_bits @ (1 << np.array(order, dtype=np.int64))  # by mask of positions
    # Positions are decided from the last to the first; a part is complete at its first position.
    closes = [p == 0 or parts[order[p - 1]] != parts[order[p]] for p in range(len(order))]
    rows = counter.answerable
    size = max(1, _TERMS // (len(order) * len(form.bias)))
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        base, terms, doubt = _margins(form, order, counter, chunk, pooled)
        for block, width in _blocks(base, terms, closes, doubt):
            tree = _Tree(base[block, :width], terms[:, block, :width], closes)
            high = 1 << max(0, len(order) - _LEAVES)
            for prefix in range(high):
                low = tree.margins(prefix, min(_LEAVES, len(order)))
                sets = masks[prefix * len(low) : (prefix + 1) * len(low)]
                counter.judge(sets, chunk[block], low, doubt[None, block])
        counter.report(min(1.0, (start + size) / len(rows)))


def _margins(
    form: AdditiveForm, order: Sequence[int], counter: Counter, rows: IntArray, pooled: bool
) -> tuple[Float32, Float32, Float32]:
    """Margins over the true class that the bias and every device contribute.

    Returns:
        Margins of the bias [n, K − 1] and of the devices in order [N, n, K − 1], and the error bound of a sum [n].
    """
    labels = counter.labels[rows]
    # Column c of the other classes: c, or c + 1 from the true class on.
    others = np.arange(len(form.bias) - 1) + (np.arange(len(form.bias) - 1) >= labels[:, None])

    def over_true(logits: NDArray[np.float64]) -> Float32:
        margin = np.take_along_axis(logits, others, axis=1) - np.take_along_axis(logits, labels[:, None], axis=1)
        return margin.astype(np.float32)

    bias = np.broadcast_to(form.bias, (len(rows), len(form.bias)))
    height = np.abs(form.bias).max()
    terms = np.empty((len(order), *others.shape), dtype=np.float32)
    largest = np.empty((len(order), len(rows)))  # |logit| of each device
    for p, device in enumerate(order):
        centre, weight = form.centres[device], form.weights[device]
        features = counter.features[device][rows].astype(np.float64)
        logits = (features - centre) @ weight
        terms[p] = over_true(logits + bias if pooled else logits)
        largest[p] = np.abs(logits).max(axis=1) + np.abs(centre @ weight).max() + (height if pooled else 0.0)
    # A margin is at most twice the sum over parts of the largest logit. It is rounded once in float32, added at most
    # N times to partial sums and divided once; the reference rounds two logits itself. 2 (N + 6) covers all.
    part_of = np.arange(len(order)) if pooled else np.array([form.parts[i] for i in order])
    total = height + sum(largest[part_of == j].max(axis=0) for j in np.unique(part_of))
    doubt = 2 * (len(order) + 6) * UNIT_ROUNDOFF * total
    return over_true(bias * (not pooled)), terms, doubt.astype(np.float32)


def _blocks(base: Float32, terms: Float32, closes: Sequence[bool], doubt: Float32) -> list[tuple[IntArray, int]]:
    """Sorts each sample's classes by their largest possible margin, in place, and samples by how many could win.

    Returns:
        Samples of each block and the number of their first classes to keep.
    """
    ceiling, best = base.copy(), np.zeros_like(base)
    for p in reversed(range(len(terms))):
        np.maximum(best, terms[p], out=best)  # a mean is at most the largest of its terms
        if closes[p]:
            ceiling += best
            best[:] = 0
    order = np.argsort(-ceiling, axis=1)
    base[:] = np.take_along_axis(base, order, axis=1)
    for term in terms:
        term[:] = np.take_along_axis(term, order, axis=1)
    contenders = (~(ceiling < -doubt[:, None])).sum(axis=1).clip(1)
    by_need = np.argsort(-contenders, kind="stable")
    blocks, start = [], 0
    while start < len(by_need):
        width = int(contenders[by_need[start]])
        size = max(64, min(4096, _STATE // width))
        blocks.append((by_need[start : start + size], width))
        start += size
    return blocks


class _Tree:
    """Depth-first partial sums of one block of samples, classes first so that a maximum runs along the samples.

    Args:
        base: margins of the bias [b, w].
        terms: margins of each device in order [N, b, w].
        closes: whether a position completes its part [N].
    """

    def __init__(self, base: Float32, terms: Float32, closes: Sequence[bool]) -> None:
        self._base = np.ascontiguousarray(base.T)
        self._terms = np.ascontiguousarray(terms.transpose(0, 2, 1))
        self._closes = closes
        self._settled = np.empty_like(self._terms)  # parts complete up to this position
        self._partial = np.empty_like(self._terms)  # sum over the open part up to this position
        self._scaled = np.empty_like(self._base)
        self._out: Float32 = np.empty((1, self._base.shape[1]), dtype=np.float32)

    def margins(self, prefix: int, depth: int) -> Float32:
        """Margins of all sets with given high positions.

        Args:
            prefix: mask of the positions from ``depth`` on.
            depth: positions below it take all values.

        Returns:
            [2^depth, b], by the mask of the low positions; overwritten by the next call.
        """
        if len(self._out) != 1 << depth:
            self._out = np.empty((1 << depth, self._base.shape[1]), dtype=np.float32)
        settled, partial, count = self._base, None, 0
        for p in reversed(range(depth, len(self._terms))):
            settled, partial, count = self._decide(p, bool(prefix >> (p - depth) & 1), settled, partial, count)
        self._walk(depth - 1, 0, settled, partial, count)
        return self._out

    def _walk(self, p: int, mask: int, settled: Float32, partial: Float32 | None, count: int) -> None:
        """Visits every completion of a prefix that is decided down to position ``p``."""
        if p < 0:
            np.maximum.reduce(settled, axis=0, out=self._out[mask])
            return
        self._walk(p - 1, mask | 1 << p, *self._decide(p, True, settled, partial, count))
        self._walk(p - 1, mask, *self._decide(p, False, settled, partial, count))

    def _decide(
        self, p: int, answered: bool, settled: Float32, partial: Float32 | None, count: int
    ) -> tuple[Float32, Float32 | None, int]:
        """Decides whether one device answers, and averages its part once it is complete."""
        if answered:
            term = self._terms[p]
            partial = term if partial is None else np.add(partial, term, out=self._partial[p])
            count += 1
        if not self._closes[p]:
            return settled, partial, count
        if partial is not None:
            if count > 1:
                partial = np.multiply(partial, np.float32(1 / count), out=self._scaled)
            settled = np.add(settled, partial, out=self._settled[p])
        return settled, None, 0
