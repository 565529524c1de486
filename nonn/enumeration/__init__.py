"""Exact counts of the test samples that each of the 2^N subsets of devices classifies correctly, with shared work.

A plain loop fuses 2^N times over all samples. Here a depth-first tree decides one device at a time and reuses the
partial result of a prefix for all its completions, on blocks of samples that stay in the cache:

- heads whose logits are a sum over devices or parts (``nonn.enumeration.additive``) cost one addition and one
  maximum per subset;
- the ridge head (``nonn.enumeration.ridge``) shares the elimination of the devices decided so far;
- the logistic heads (``nonn.enumeration.linear``) share nothing: one product in float32 per subset;
- the masked head (``nonn.enumeration.masked``) shares the terms of the devices, in float64;
- any other head is fused separately for each subset.

Sums in float32 have a bound on their rounding error. A sample whose margin is not safely beyond that bound is
fused by the head itself, so the counts equal those of ``head.logits(…).astype(np.float32).argmax(axis=1)`` over all
samples, ties included: the lowest class wins. Only the masked head may decide an exact tie differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonn.enumeration.additive import additive_form, count_additive
from nonn.enumeration.counter import Counter
from nonn.enumeration.linear import count_linear
from nonn.enumeration.masked import count_masked
from nonn.enumeration.ridge import count_ridge
from nonn.enumeration.sampled import sample_evidence
from nonn.errors import ShapeError
from nonn.fusion import Head, LogisticPerSet, MaskedHead, RidgePerSet
from nonn.reliability.evidence import Evidence
from nonn.reliability.outcomes import Outcomes, kept_samples
from nonn.reliability.sampled_evidence import AnyEvidence
from nonn.reliability.subsets import MAX_DEVICES, all_masks, members
from nonn.reliability.table import SubsetTable

if TYPE_CHECKING:
    from nonn.reliability.laws.base import Law

__all__ = ["count_correct", "count_one_by_one", "enumerate_evidence", "enumerate_subsets", "evaluate_subsets"]

IntArray = NDArray[np.int64]


def count_correct(
    head: Head,
    features: Sequence[NDArray[Any]],
    labels: IntArray,
    *,
    per_class: bool = False,
    progress: Callable[[float], None] | None = None,
) -> IntArray:
    """Counts the correct answers of every subset.

    Args:
        head: the fusion, N ≤ 16.
        features: features of each device over the same samples, N arrays [n, d_i].
        labels: true classes [n]; a label that is no class of the head is never correct.
        per_class: count by the true class.
        progress: called periodically with the completed share, 0 to 1.

    Returns:
        Counts by mask [2^N], or by mask and class [2^N, K]; the empty subset has no correct answer.

    Raises:
        ShapeError: too many devices to enumerate, or features or labels that do not fit the head.
    """
    all_masks(head.num_devices)
    counter = _counter(head, features, labels, per_class, progress)
    _count(head, counter)
    return counter.correct


def _count(head: Head, counter: Counter) -> None:
    """Counts all subsets with the method of the head."""
    form = additive_form(head)
    # np.errstate: values beyond float32 become infinite here, are in doubt, and are fused by the head in float64.
    with np.errstate(over="ignore", invalid="ignore"):
        if form is not None and head.num_classes > 1:
            count_additive(form, counter)
        elif type(head) is RidgePerSet and head.num_classes > 1 and head.is_well_conditioned:
            count_ridge(head, counter)
        elif type(head) is LogisticPerSet and head.num_classes > 1:
            count_linear(head, counter)
        elif type(head) is MaskedHead:
            count_masked(head, counter)
        else:
            _fuse_each(head, counter, all_masks(head.num_devices).tolist())


def count_one_by_one(
    head: Head,
    features: Sequence[NDArray[Any]],
    labels: IntArray,
    *,
    masks: Sequence[int] | None = None,
    per_class: bool = False,
    progress: Callable[[float], None] | None = None,
) -> IntArray:
    """Counts correct answers by fusing each subset separately: any head, any N; the reference for ``count_correct``.

    Args:
        head: the fusion.
        features: N arrays [n, d_i].
        labels: [n].
        masks: the subsets to fuse; None is all 2^N.
        per_class: count by the true class.
        progress: called with the completed share, 0 to 1.

    Returns:
        Counts in the order of ``masks``, [m] or [m, K].
    """
    wanted = all_masks(head.num_devices).tolist() if masks is None else list(masks)
    counter = _counter(head, features, labels, per_class, progress, sets=len(wanted))
    _fuse_each(head, counter, wanted)
    return counter.correct


def _fuse_each(head: Head, counter: Counter, masks: Sequence[int]) -> None:
    """Counts the subsets one by one, in the order of ``masks``."""
    for place, mask in enumerate(masks):
        if mask:
            logits = head.logits({i: counter.features[i] for i in members(mask)}, keep=False)
            with np.errstate(over="ignore"):
                right = logits.astype(np.float32).argmax(axis=1) == counter.labels
            counter.count(np.array([place]), counter.rows, right[None])
        counter.report((place + 1) / len(masks))


def _counter(
    head: Head,
    features: Sequence[NDArray[Any]],
    labels: IntArray,
    per_class: bool,
    progress: Callable[[float], None] | None,
    sets: int | None = None,
    keep: IntArray | None = None,
) -> Counter:
    """Checks shapes and creates an empty counter."""
    if len(features) != head.num_devices:
        raise ShapeError(f"features of {len(features)} devices for a head of {head.num_devices}")
    for i, (given, width) in enumerate(zip(features, head.widths, strict=True)):
        if given.shape != (len(labels), width):
            raise ShapeError(
                f"device {i}: features of shape {list(given.shape)}, expected {[len(labels), width]} for these labels"
            )
    return Counter(head, features, labels, 1 << head.num_devices if sets is None else sets, per_class, progress, keep)


def enumerate_subsets(head: Head, features: Sequence[NDArray[Any]], labels: NDArray[np.int64]) -> SubsetTable:
    """Fuses every one of the 2^N subsets and counts the correct answers.

    Args:
        head: the fusion.
        features: features of each device over the same samples, N arrays [n, d_i].
        labels: true classes [n].

    Returns:
        The exact table; the empty subset has no correct answer.
    """
    return SubsetTable(count_correct(head, features, labels), len(labels))


def enumerate_evidence(head: Head, features: Sequence[NDArray[Any]], labels: NDArray[np.int64]) -> Evidence:
    """As ``enumerate_subsets``, with the outcome of each sample.

    Of many samples and devices, the outcomes of a random choice are kept (``nonn.reliability.outcomes``).
    """
    all_masks(head.num_devices)
    counter = _counter(head, features, labels, False, None, keep=kept_samples(head.num_devices, len(labels)))
    _count(head, counter)
    return Evidence(SubsetTable(counter.correct, len(labels)), Outcomes.of(counter.outcomes, len(labels)))


def evaluate_subsets(
    head: Head, features: Sequence[NDArray[Any]], labels: NDArray[np.int64], laws: Sequence[Law]
) -> AnyEvidence:
    """``enumerate_evidence`` up to 16 devices, beyond them ``sample_evidence`` with draws of failure laws."""
    if head.num_devices <= MAX_DEVICES:
        return enumerate_evidence(head, features, labels)
    return sample_evidence(head, features, labels, laws)
