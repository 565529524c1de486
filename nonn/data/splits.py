"""Seeded splits: stratified by class, or by groups that stay whole.

The test split and the held-out split are drawn from separate random streams, so that they are independent. Within a
split samples keep the order of their file; the trainer shuffles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.data.dataset import Dataset, Split
from nonn.data.source import Source
from nonn.errors import DataError

__all__ = ["choose_groups", "hold_out", "skew", "split_by_share", "stratified"]

IntArray = NDArray[np.int64]

_TEST, _HELD_OUT, _SKEW = 0, 1, 2  # streams of random numbers


def hold_out(source: Source, share: float, seed: int, by: str = "class") -> Dataset:
    """Divides the training data of a source into ``train`` and ``held_out``.

    Args:
        source: result of a reader.
        share: share of each class, or of the groups.
        seed: seed of the draw of samples or groups.
        by: ``class`` or ``group``.

    Raises:
        DataError: too few samples per class or groups for this share, or splits that do not fit each other.
    """
    generator = np.random.default_rng([seed, _HELD_OUT])
    if by == "group":
        if source.groups is None:
            raise DataError(f"{source.name}: data.held_out_by = 'group', but these data have no groups")
        present = np.unique(source.groups)
        number = math.ceil(round(share * len(present), 9))
        if number >= len(present):
            raise DataError(f"{source.name}: data.held_out = {share} of {len(present)} groups leaves none to train on")
        held = np.isin(source.groups, generator.choice(present, size=number, replace=False))
        train, held_out = np.flatnonzero(~held), np.flatnonzero(held)
    else:
        train, held_out = stratified(source.train.labels, share, generator, f"{source.name}: data.held_out")
    splits = source.train.take(train), source.train.take(held_out), source.test
    return Dataset.of(source.name, *splits, source.classes, source.preprocess)


def skew(source: Source, imbalance: float, seed: int) -> Source:
    """Training data with a long tail: class k of K keeps up to n · imbalance^(−k / (K − 1)) samples, at least two.

    n is the size of the largest class, so the classes of balanced data get exactly these numbers. The test data stay.

    Args:
        source: result of a reader.
        imbalance: ratio of the first to the last class; 1 changes nothing.
        seed: seed of the draw.

    Raises:
        DataError: there is only one class.

    Source: the exponential profile of Cui et al. 2019, arXiv 1901.05555.
    """
    if imbalance == 1:
        return source
    labels, num_classes = source.train.labels, len(source.classes)
    if num_classes < 2:
        raise DataError(f"{source.name}: data.imbalance = {imbalance} needs at least two classes")
    generator = np.random.default_rng([seed, _SKEW])
    largest = np.bincount(labels).max()
    kept = np.zeros(len(labels), dtype=bool)
    for label in range(num_classes):
        samples = np.flatnonzero(labels == label)
        limit = max(2, round(largest * imbalance ** (-label / (num_classes - 1))))
        kept[generator.permutation(samples)[:limit]] = True
    index = np.flatnonzero(kept)
    groups = None if source.groups is None else source.groups[index]
    return dataclasses.replace(source, train=source.train.take(index), groups=groups)


def split_by_share(data: Split, share: float, seed: int, name: str) -> tuple[Split, Split]:
    """Training and test split of data whose files have none, stratified by class.

    Raises:
        DataError: too few samples per class for this share.
    """
    train, test = stratified(data.labels, share, np.random.default_rng([seed, _TEST]), f"{name}: data.test")
    return data.take(train), data.take(test)


def stratified(labels: IntArray, share: float, generator: np.random.Generator, what: str) -> tuple[IntArray, IntArray]:
    """Draws ⌈share · n⌉ samples so that each class contributes its share, to within one sample.

    Whole samples go to the classes with the largest remainders, the first class first among equals. At least one sample
    of each class is not drawn.

    Args:
        labels: classes [n].
        share: between 0 and 1.
        generator: draws which samples of a class.
        what: name in the error.

    Returns:
        Indices of the remaining samples and of the drawn ones, each ascending.

    Raises:
        DataError: no class has a sample to spare.
    """
    counts = np.bincount(labels)
    quota = counts * share
    take = np.floor(quota).astype(np.int64)
    # Rounded before the ceiling: 0.07 · 100 is 7.000000000000001 in floats.
    missing = math.ceil(round(share * len(labels), 9)) - int(take.sum())
    by_remainder = np.argsort(take - quota, kind="stable")
    able = by_remainder[take[by_remainder] + 1 < counts[by_remainder]]
    take[able[:missing]] += 1
    if not take.any():
        raise DataError(f"{what} = {share}: no class has two samples to divide")
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.flatnonzero(take):
        drawn[generator.choice(np.flatnonzero(labels == label), size=take[label], replace=False)] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def choose_groups(groups: NDArray[Any], wanted: Sequence[int], share: float, seed: int, what: str) -> NDArray[np.bool_]:
    """Which samples belong to the groups that are the test split.

    Args:
        groups: group of each sample, such as a person [n].
        wanted: the groups of the test split; if empty, ⌈share · number of groups⌉ of them are drawn.
        share: share of groups, between 0 and 1.
        seed: seed of the draw.
        what: name in the errors.

    Returns:
        True for samples of the test split [n].

    Raises:
        DataError: a wanted group does not exist, or no group is left to train on.
    """
    present = np.unique(groups)
    if wanted:
        unknown = [group for group in wanted if group not in present.tolist()]
        if unknown:
            raise DataError(
                f"{what}: no group {', '.join(map(str, unknown))}; there are: {', '.join(map(str, present))}"
            )
        chosen = np.isin(groups, np.asarray(wanted))
    else:
        number = math.ceil(round(share * len(present), 9))
        generator = np.random.default_rng([seed, _TEST])
        chosen = np.isin(groups, generator.choice(present, size=number, replace=False))
    if chosen.all():
        raise DataError(f"{what}: all of the {len(present)} groups are in the test split, so none is left to train on")
    return chosen
