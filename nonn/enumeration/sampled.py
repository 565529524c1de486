"""Evaluates a sample of subsets, for more devices than can be enumerated (``nonn.reliability.sampled``).

Subsets with few failures are most of them. A ridge head gives their logits as those of all devices less a correction:
with P the inverse of its system and W its solution, ``z_S = z − (φ − μ) P[:, A] P_AA⁻¹ W[A]``, where A are the failed
devices. It costs |A| features instead of all. The sum of a head that adds up over its devices is cheap for any subset.
All else is fused subset by subset.

Answers equal those of the head: samples near a tie are fused by the head itself (``nonn.enumeration.counter``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import xor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonn.enumeration.additive import AdditiveForm, additive_form
from nonn.enumeration.counter import Counter
from nonn.enumeration.worst import ROUNDS, search_worst
from nonn.fusion import Head, RidgePerSet
from nonn.reliability.counted import COUNTED_FAILURES, counted_failures, draw_others, few_failures
from nonn.reliability.outcomes import Outcomes, kept_samples
from nonn.reliability.sampled import SampledTable
from nonn.reliability.sampled_evidence import SampledEvidence
from nonn.reliability.subsets import mask_of, masks_of, members, membership_of

if TYPE_CHECKING:
    from nonn.reliability.laws.base import Law

__all__ = ["CHAINS", "DRAWS", "count_masks", "sample_evidence"]

CHAINS, DRAWS = 64, 256
_BLOCK = 1 << 25  # floats of the samples at once: 268 MB

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Logits = Callable[[int], FloatArray | None]


def sample_evidence(
    head: Head,
    features: Sequence[NDArray[Any]],
    labels: IntArray,
    laws: Sequence[Law] = (),
    *,
    failed: int = COUNTED_FAILURES,
    chains: int = CHAINS,
    draws: int = DRAWS,
    seed: int = 0,
    rounds: int = ROUNDS,
    progress: Callable[[float], None] | None = None,
) -> SampledEvidence:
    """Evaluates subsets with few failures, samples of the others, and the worst that a search from these finds.

    Args:
        head: the fusion, any N.
        features: features of each device over the same samples, N arrays [n, d_i].
        labels: true classes [n].
        laws: failure laws of which the table gets draws.
        failed: all subsets with at most this many failures are evaluated, if they are at most 50,000.
        chains: orders in which all devices fail; subsets of each number of failures.
        draws: draws of each law.
        seed: seed of chains and draws.
        rounds: of the search for the worst subset of each size; see ``nonn.enumeration.worst``.
        progress: called periodically with the completed share, 0 to 1.
    """
    n, rng = head.num_devices, np.random.default_rng(seed)
    full, counted = (1 << n) - 1, counted_failures(n, failed)
    place: dict[int, int] = {}

    def places(masks: Sequence[int]) -> IntArray:
        return np.array([place.setdefault(mask, len(place)) for mask in masks], dtype=np.int64)

    places([full & ~mask_of(gone) for gone in few_failures(n, counted)])
    places([1 << i for i in range(n)])
    orders = [[1 << i for i in rng.permutation(n)[:-1].tolist()] for _ in range(chains)]
    chained = np.stack([places(list(accumulate(order, xor, initial=full))) for order in orders])
    drawn = {}
    for law in laws:
        drawn[law.text] = places([int(mask) for mask in masks_of(draw_others(law, counted, draws, rng))])
    masks = list(place)
    kept = kept_samples(n, len(labels), len(masks) + n)

    def counts(some: Sequence[int], shown: Callable[[float], None] | None = None) -> Counter:
        counter = Counter(head, features, labels, len(some), False, shown, kept)
        count_masks(counter, some)
        return counter

    sampled, up = counts(masks, progress), membership_of(masks, n)
    searched = [size for size, of_size in enumerate(np.bincount((~up).sum(axis=1))) if of_size < math.comb(n, size)]
    found = search_worst(up, sampled.correct, lambda some: counts(some).correct, searched, rounds=rounds)
    worst = [mask for mask, _ in found.values()]
    rest = counts(worst)
    table = SampledTable(
        up=np.concatenate([up, membership_of(worst, n)]),
        correct=np.concatenate([sampled.correct, rest.correct]),
        samples=len(labels),
        counted=counted,
        chains=chained,
        draws=drawn,
    )
    outcomes = np.concatenate([sampled.outcomes, rest.outcomes], axis=1)
    return SampledEvidence(table, Outcomes.of(outcomes, len(labels), n))


def count_masks(counter: Counter, masks: Sequence[int]) -> None:
    """Counts the correct answers of some subsets.

    Args:
        counter: receives the counts; its subsets are those of ``masks``, in this order.
        masks: the subsets.
    """
    head, labels, n = counter.head, counter.labels, len(counter.labels)
    rest = list(range(len(masks)))
    form = additive_form(head) if head.num_classes > 1 else None
    ridge = type(head) is RidgePerSet and head.num_classes > 1 and head.is_well_conditioned
    if form is not None or ridge:
        width = head.num_devices * head.num_classes if form else int(head.offsets[-1])
        size = max(1, _BLOCK // width)
        for start in range(0, n, size):
            rows = counter.answerable
            rows = rows[(rows >= start) & (rows < start + size)]
            logits = _additive(form, counter, rows) if form else _few(head, counter, rows)
            left = []
            for number, mask in enumerate(masks):
                if (found := logits(mask)) is None:
                    left.append(number)
                elif mask:
                    right = counter.decide(mask, rows, found)
                    counter.count(np.array([number]), rows, right[None])
                counter.report((start + size * (number + 1) / len(masks)) / max(n, size))
            rest = left
    for number in rest:
        if masks[number]:
            arrived = {i: counter.features[i] for i in members(masks[number])}
            logits_of = head.logits(arrived, keep=False).astype(np.float32)
            counter.count(np.array([number]), counter.rows, (logits_of.argmax(axis=1) == labels)[None])
        counter.report((number + 1) / len(masks))


def _few(head: Head, counter: Counter, rows: IntArray) -> Logits:
    """Logits of a ridge head for subsets with fewer failed devices than answering ones; None for the others."""
    assert isinstance(head, RidgePerSet)
    system, target, mean, target_mean = head.normal_equations()
    solved = np.linalg.solve(system, np.concatenate([np.eye(len(system)), target], axis=1))
    inverse, weight = solved[:, : len(system)], solved[:, len(system) :]
    centred = np.concatenate([f[rows] for f in counter.features], axis=1).astype(np.float64) - mean
    whole, projected, full = centred @ weight + target_mean, centred @ inverse, (1 << head.num_devices) - 1

    def logits(mask: int) -> FloatArray | None:
        gone = head.rows(full & ~mask)
        if 2 * len(gone) > len(mean) or not mask:
            return None
        removed = np.linalg.solve(inverse[gone[:, None], gone], weight[gone])
        found: FloatArray = whole - projected[:, gone] @ removed
        return found

    return logits


def _additive(form: AdditiveForm, counter: Counter, rows: IntArray) -> Logits:
    """Logits of a head that adds up means over the devices of each part."""
    terms = [
        (f[rows].astype(np.float64) - centre) @ weight
        for f, centre, weight in zip(counter.features, form.centres, form.weights, strict=True)
    ]
    devices_of = [[i for i, part in enumerate(form.parts) if part == number] for number in sorted(set(form.parts))]

    def total(some: Sequence[FloatArray]) -> FloatArray:
        result: FloatArray = np.sum(some, axis=0)
        return result

    sums = [total([terms[i] for i in devices]) for devices in devices_of]
    means = [of_part / len(devices) for of_part, devices in zip(sums, devices_of, strict=True)]
    whole: FloatArray = form.bias + total(means)

    def mean(part: int, mask: int) -> FloatArray | float:
        """Mean over the answering devices of a part; 0 without any."""
        devices = devices_of[part]
        up = [i for i in devices if mask >> i & 1]
        if len(up) == len(devices):
            return means[part]
        if 2 * len(up) < len(devices):
            return total([terms[i] for i in up]) / len(up) if up else 0.0
        return (sums[part] - total([terms[i] for i in devices if not mask >> i & 1])) / len(up)

    def logits(mask: int) -> FloatArray | None:
        touched = [part for part, devices in enumerate(devices_of) if any(not mask >> i & 1 for i in devices)]
        if 2 * len(touched) < len(devices_of):
            found = np.array(whole)
            for part in touched:
                found += mean(part, mask) - means[part]
            return found
        found = np.tile(form.bias, (len(rows), 1))
        for part in range(len(devices_of)):
            found += mean(part, mask)
        return found

    return logits
