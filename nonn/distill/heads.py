"""Fitting the fusion heads that can be served.

====================  ================================================================================================
``fusion.head``       what it is
====================  ================================================================================================
``trained``           the fusion the students were trained through
``zero-fill``         the trained layer of all devices; an absent one counts as zeros
``rescale``           the same, scaled by N/|S|
``mean-fill``         the same; an absent device counts as the mean of its features
``ridge``             a ridge regression for every answering set, to the teacher's logits or to the labels
``logistic``          a logistic regression for every answering set, a few steps from the ridge
``best``              of all of these the one that is most often right on the held-out split
====================  ================================================================================================

Regressions are fitted to augmented passes over the training split, since students overfit the images they saw as they
are; λ, the number of steps, the head and the temperatures are chosen on the held-out split. The features of all
passes are computed once, however many heads are fitted to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nonn.config import FusionConfig
from nonn.data import Split
from nonn.distill.logistic import fit_logistic
from nonn.distill.students import Students
from nonn.fusion import Head, MeanFill, Rescale, RidgePerSet, ZeroFill, gram
from nonn.fusion.calibration import fit_temperatures
from nonn.reliability.subsets import all_masks, members, membership
from nonn.teacher import Teacher
from nonn.trainer import Augmentation, batches, epoch_generator

__all__ = ["KINDS", "choose_ridge", "fit_head", "fit_heads", "held_out_accuracy", "held_out_features"]

KINDS = ("trained", "zero-fill", "rescale", "mean-fill", "ridge", "logistic")

_PASS = 1_000_000  # passes draw from other epochs' generators than training did
_SETS = 256  # answering sets that λ is chosen over; all of them up to N = 8


@dataclass(frozen=True)
class _Passes:
    """Augmented passes over the training split: sums over all, features [n, D] and labels [n] of the first."""

    gram_matrix: NDArray[np.float64]
    cross: NDArray[np.float64]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def fit_head(
    config: FusionConfig,
    teacher: Teacher,
    students: Students,
    train: Split,
    held_out: Split,
    *,
    seed: int,
    augment: Augmentation,
    device: str = "cpu",
) -> Head:
    """The head that the configuration asks for; the arguments are those of ``fit_heads``."""
    kinds = KINDS if config.head == "best" else (config.head,)
    heads = fit_heads(
        config, teacher, students, train, held_out, kinds=kinds, seed=seed, augment=augment, device=device
    )
    if len(heads) == 1:
        return heads[kinds[0]]
    features = held_out_features(students, held_out, device)
    score = {kind: held_out_accuracy(head, features, held_out.labels, seed) for kind, head in heads.items()}
    return heads[max(kinds, key=lambda kind: score[kind])]  # the simplest of equals


def fit_heads(
    config: FusionConfig,
    teacher: Teacher,
    students: Students,
    train: Split,
    held_out: Split,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int,
    augment: Augmentation,
    device: str = "cpu",
) -> dict[str, Head]:
    """Several heads for the same students.

    Args:
        config: passes, candidates and storage; which temperatures each head gets.
        teacher: gives the targets of the ridge.
        students: give the features, and the fusion they were trained through.
        train: what heads are fitted to, augmented.
        held_out: chooses λ and the number of steps, and fits the temperatures.
        kinds: which heads, of ``KINDS``.
        seed: of the augmentation and the answering sets.
        augment: (raw batch, generator) → varied raw batch.
        device: torch device name.

    Returns:
        The heads, by kind. ``trained`` has the kind of head that the students' fusion is.
    """
    students.to(device).eval()
    teacher.to(device).eval()
    fitted = {"mean-fill", "ridge", "logistic"}.intersection(kinds)
    trained = students.fusion.head()
    # Whatever the fusion, all devices together are one linear layer over all features.
    weight, bias = trained.weights((1 << trained.num_devices) - 1)
    heads: dict[str, Head] = {
        "trained": trained,
        "zero-fill": ZeroFill(weight, bias, trained.widths),
        "rescale": Rescale(weight, bias, trained.widths),
    }
    recorded: list[NDArray[np.float32]] = []
    if fitted - {"mean-fill"} or config.temperature != "none":
        recorded = held_out_features(students, held_out, device)
    if fitted:
        kept = config.samples if "logistic" in kinds else 0
        passes = _passes(
            config.passes, teacher, students, train, seed, augment, device, kept, config.target, trained.num_classes
        )
        ridge = RidgePerSet(passes.gram_matrix, passes.cross, config.ridge[0], trained.widths)
        heads["mean-fill"] = MeanFill(weight, bias, trained.widths, ridge.mean)
        if fitted - {"mean-fill"}:
            ridge = ridge.with_ridge(choose_ridge(ridge, recorded, held_out.labels, config.ridge, seed))
            heads["ridge"] = ridge
        if "logistic" in kinds:
            heads["logistic"] = fit_logistic(
                ridge,
                passes.features,
                passes.labels,
                recorded,
                held_out.labels,
                steps=config.steps,
                limit_bytes=int(config.stored_mb * 1e6),
                device=device,
            )
    chosen = {kind: heads[kind] for kind in kinds}
    if config.temperature == "none":
        return chosen
    return {
        kind: head.with_temperatures(
            fit_temperatures(head, recorded, held_out.labels, by=config.temperature, seed=seed)
        )
        for kind, head in chosen.items()
    }


def held_out_accuracy(
    head: Head, features: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], seed: int
) -> float:
    """Mean accuracy of a head over answering sets, every number of failures weighing the same.

    Args:
        head: the fusion.
        features: of each device, N arrays [n, d_i].
        labels: [n].
        seed: of the sample of answering sets where there are more than 256.
    """
    masks = all_masks(head.num_devices)[1:]
    if len(masks) > _SETS:
        masks = np.sort(np.random.default_rng(seed).choice(masks, _SETS, replace=False))
    survivors = membership(head.num_devices)[masks].sum(axis=1)
    weight = 1 / np.bincount(survivors)[survivors]
    correct = [
        (head.logits({i: features[i] for i in members(mask)}).argmax(axis=1) == labels).mean()
        for mask in masks.tolist()
    ]
    return float(np.dot(weight, correct) / weight.sum())


def choose_ridge(
    head: RidgePerSet,
    features: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    candidates: Sequence[float],
    seed: int,
) -> float:
    """The λ with the best ``held_out_accuracy``; the largest of equals.

    Args:
        head: any λ.
        features: of each device, N arrays [n, d_i].
        labels: [n].
        candidates: values of λ.
        seed: of the sample of answering sets where there are more than 256.
    """
    return max((held_out_accuracy(head.with_ridge(ridge), features, labels, seed), ridge) for ridge in candidates)[1]


def held_out_features(students: Students, held_out: Split, device: str) -> list[NDArray[np.float32]]:
    """Features of each device over the held-out split as it is, N arrays [n, d_i]."""
    with torch.no_grad():
        chunks = [students.features(raw) for raw in batches(held_out.inputs, device)]
    return [torch.cat(f).cpu().numpy() for f in zip(*chunks, strict=True)]


def _passes(
    num_passes: int,
    teacher: Teacher,
    students: Students,
    train: Split,
    seed: int,
    augment: Augmentation,
    device: str,
    kept: int = 0,
    target: str = "teacher",
    num_classes: int = 0,
) -> _Passes:
    """Runs students and teacher over augmented passes; keeps the features of about the first ``kept`` samples."""
    sums: list[NDArray[np.float64]] = []
    phi: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    count = 0
    with torch.no_grad():
        for number in range(num_passes):
            generator = epoch_generator(seed, _PASS + number)
            start = 0
            for raw in batches(train.inputs, device):
                varied = augment(raw, generator)
                features = torch.cat(students.features(varied), dim=1).cpu().numpy()
                if target == "labels":
                    targets = np.eye(num_classes)[train.labels[start : start + len(raw)]]
                else:
                    targets = teacher(varied)[1].cpu().numpy()
                added = gram(features, targets)
                sums = [s + a for s, a in zip(sums, added, strict=True)] if sums else list(added)
                if count < kept:
                    phi.append(features)
                    labels.append(train.labels[start : start + len(raw)])
                start, count = start + len(raw), count + len(raw)
    width = len(sums[0]) - 1
    return _Passes(
        sums[0],
        sums[1],
        np.concatenate(phi) if phi else np.empty((0, width), np.float32),
        np.concatenate(labels) if labels else np.empty(0, np.int64),
    )
