"""Fitting the fusion head that is served.

The Gram matrix sums augmented passes over the training split, since students overfit the images they saw as they
are; λ is chosen on the held-out split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nonn.config import FusionConfig
from nonn.data import Split
from nonn.distill.task import Students
from nonn.fusion import Head, RidgePerSet, gram
from nonn.subsets import all_masks, members, membership
from nonn.teacher import Teacher
from nonn.trainer import Augmentation, batches, epoch_generator

__all__ = ["choose_ridge", "fit_head"]

_PASS = 1_000_000  # passes draw from other epochs' generators than training did
_SETS = 256  # answering sets that λ is chosen over; all of them up to N = 8


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
    """The head that the configuration asks for.

    Args:
        config: ``head`` is ``trained`` (the fusion the students were trained through) or ``ridge``.
        teacher: gives the targets.
        students: give the features.
        train: summed into the Gram matrix, augmented.
        held_out: chooses λ.
        seed: of the augmentation and the answering sets.
        augment: (raw batch, generator) → varied raw batch.
        device: torch device name.
    """
    if config.head == "trained":
        return students.fusion.head()
    students.to(device).eval()
    teacher.to(device).eval()
    sums: list[NDArray[np.float64]] = []
    with torch.no_grad():
        for number in range(config.passes):
            generator = epoch_generator(seed, _PASS + number)
            for raw in batches(train.inputs, device):
                varied = augment(raw, generator)
                features = torch.cat(students.features(varied), dim=1).cpu().numpy()
                added = gram(features, teacher(varied)[1].cpu().numpy())
                sums = [s + a for s, a in zip(sums, added, strict=True)] if sums else list(added)
        chunks = [students.features(raw) for raw in batches(held_out.inputs, device)]
    features_held_out = [torch.cat(f).cpu().numpy() for f in zip(*chunks, strict=True)]
    head = RidgePerSet(sums[0], sums[1], config.ridge[0], students.fusion.widths)
    return head.with_ridge(choose_ridge(head, features_held_out, held_out.labels, config.ridge, seed))


def choose_ridge(
    head: RidgePerSet,
    features: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    candidates: Sequence[float],
    seed: int,
) -> float:
    """The λ with the best accuracy, every number of failures weighing the same; the largest of equals.

    Args:
        head: any λ.
        features: of each device, N arrays [n, d_i].
        labels: [n].
        candidates: values of λ.
        seed: of the sample of answering sets where there are more than 256.
    """
    masks = all_masks(head.num_devices)[1:]
    if len(masks) > _SETS:
        masks = np.sort(np.random.default_rng(seed).choice(masks, _SETS, replace=False))
    survivors = membership(head.num_devices)[masks].sum(axis=1)
    weight = 1 / np.bincount(survivors)[survivors]
    scores = []
    for ridge in candidates:
        tried = head.with_ridge(ridge)
        correct = [
            (tried.logits({i: features[i] for i in members(mask)}).argmax(axis=1) == labels).mean()
            for mask in masks.tolist()
        ]
        scores.append((float(np.dot(weight, correct) / weight.sum()), ridge))
    return max(scores)[1]
