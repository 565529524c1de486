"""What fusion heads are fitted to, and how each head of nonn is fitted.

A head is fitted by a function of a ``Fitting``. Its parts are computed when a head first uses them and shared by all
heads, so the students run over the training split once. docs/extending.md shows a head outside of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nonn.config import FusionConfig
from nonn.data import Split
from nonn.distill.logistic import fit_logistic
from nonn.distill.masked import fit_masked
from nonn.distill.precision import STRENGTHS, fit_precision
from nonn.distill.rebalance import balanced_order, head_to_tail
from nonn.distill.students import Students
from nonn.fusion import Head, LinearHead, MeanFill, Rescale, RidgePerSet, ZeroFill, gram
from nonn.reliability.subsets import members, sets_by_survivors
from nonn.teacher import Teacher
from nonn.trainer import batches, epoch_generator

__all__ = ["Fitting", "FittingData", "Passes", "choose_ridge", "held_out_accuracy"]

_PASS = 1_000_000  # passes use generators of other epochs than training
_SETS = 8  # subsets of each size on which λ and the ``best`` head are chosen: 57 of 255 for eight devices


@dataclass(frozen=True)
class FittingData:
    """What all heads of one experiment are fitted and chosen with.

    Attributes:
        config: the head, and passes, candidates, storage and temperatures of all heads.
        train: split that heads are fitted to, augmented.
        held_out: split for choosing λ, the number of steps and the ``best`` head, and for the temperatures.
        seed: seed of the augmentation and of the sample of subsets.
        augment: (raw batch, generator) → varied raw batch.
        device: torch device name.
    """

    config: FusionConfig
    train: Split
    held_out: Split
    seed: int
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    device: str = "cpu"

    def held_out_features(self, students: Students) -> list[NDArray[np.float32]]:
        """Features of each device over the original held-out split, N arrays [n, d_i]."""
        with torch.no_grad():
            chunks = [students.features(raw) for raw in batches(self.held_out.inputs, self.device)]
        return [torch.cat(f).cpu().numpy() for f in zip(*chunks, strict=True)]


@dataclass(frozen=True)
class Fitting:
    """The data that heads are fitted to.

    Attributes:
        data: options, splits and augmentation.
        teacher: gives the targets.
        students: gives the features and the fusion through which they were trained.
        keeps_samples: whether ``features``, ``labels`` and ``targets`` are recorded.
    """

    data: FittingData
    teacher: Teacher
    students: Students
    keeps_samples: bool = True

    @property
    def config(self) -> FusionConfig:
        """The table ``[fusion]``."""
        return self.data.config

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.data.seed

    @cached_property
    def trained(self) -> LinearHead:
        """The fusion through which the students were trained."""
        head = self.students.fusion.head()
        assert isinstance(head, LinearHead)
        return head

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each device [N]."""
        return self.trained.widths

    @cached_property
    def layer(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights [D, K] and bias [K] of the trained layer of all devices together, which every fusion has."""
        return self.trained.weights((1 << self.trained.num_devices) - 1)

    @property
    def features(self) -> list[NDArray[np.float32]]:
        """Features of each device over augmented training samples, N arrays [n, d_i], n about ``fusion.samples``."""
        return np.split(self.passes.features, np.cumsum(self.widths)[:-1], axis=1)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of these samples [n]."""
        return self.passes.labels

    @property
    def targets(self) -> NDArray[np.float32]:
        """The teacher's logits of these samples [n, K], or one-hot labels with ``fusion.target = "labels"``."""
        return self.passes.targets

    @cached_property
    def held_out_features(self) -> list[NDArray[np.float32]]:
        """Features of each device over the held-out split, N arrays [m, d_i]: for choices, not for fitting."""
        return self.data.held_out_features(self.students)

    @property
    def held_out_labels(self) -> NDArray[np.int64]:
        """Labels of the held-out split [m]."""
        return self.data.held_out.labels

    @cached_property
    def passes(self) -> Passes:
        """Sums over all augmented passes of the training split."""
        data, classes = self.data, self.students.fusion.linear.out_features
        config, train = self.config, data.train
        counts = np.bincount(train.labels, minlength=classes)
        kept = self.config.samples if self.keeps_samples else 0
        passes = Passes(sum(self.widths), classes)
        with torch.no_grad():
            for number in range(self.config.passes):
                generator, start = epoch_generator(self.seed, _PASS + number), 0
                rng = np.random.default_rng([self.seed, _PASS + number])
                split = train.take(balanced_order(train.labels, rng)) if config.balanced else train
                for raw in batches(split.inputs, data.device):
                    labels = split.labels[start : start + len(raw)]
                    varied = data.augment(raw, generator)
                    features = torch.cat(self.students.features(varied), dim=1).cpu().numpy()
                    if self.config.target == "labels":
                        targets = np.eye(classes)[labels]
                    else:
                        targets = self.teacher(varied)[1].cpu().numpy()
                    if config.head_to_tail:
                        features = head_to_tail(features, labels, counts, config.head_to_tail, rng)
                    passes.add(features, targets, labels, kept)
                    start += len(raw)
        return passes

    @cached_property
    def unchosen_ridge(self) -> RidgePerSet:
        """The ridge head with the first λ."""
        passes = self.passes
        return RidgePerSet(passes.gram_matrix, passes.cross, self.config.ridge[0], self.widths)

    @cached_property
    def ridge(self) -> RidgePerSet:
        """The ridge head with the λ that is best on the held-out split."""
        head = self.unchosen_ridge
        chosen = choose_ridge(head, self.held_out_features, self.held_out_labels, self.config.ridge, self.seed)
        return head.with_ridge(chosen)


def fit_trained(fitting: Fitting) -> Head:
    """The fusion through which the students were trained."""
    return fitting.trained


def fit_zero_fill(fitting: Fitting) -> Head:
    """The trained layer of all devices; an absent one counts as zeros."""
    return ZeroFill(*fitting.layer, fitting.widths)


def fit_rescale(fitting: Fitting) -> Head:
    """The same, scaled by N/|S|."""
    return Rescale(*fitting.layer, fitting.widths)


def fit_mean_fill(fitting: Fitting) -> Head:
    """The same; an absent device counts as the mean of its features."""
    return MeanFill(*fitting.layer, fitting.widths, fitting.unchosen_ridge.mean)


def fit_ridge(fitting: Fitting) -> Head:
    """A ridge regression for every subset of devices."""
    return fitting.ridge


def fit_logistic_head(fitting: Fitting) -> Head:
    """A logistic regression for every subset of devices, a few steps from the ridge."""
    return fit_logistic(
        fitting.ridge,
        fitting.passes.features,
        fitting.labels,
        fitting.held_out_features,
        fitting.held_out_labels,
        steps=fitting.config.steps,
        limit_bytes=int(fitting.config.stored_mb * 1e6),
        device=fitting.data.device,
    )


def fit_masked_head(fitting: Fitting) -> Head:
    """One network for all subsets of devices, with their mask as an input."""
    return fit_masked(
        fitting.trained,
        fitting.passes.features,
        fitting.labels,
        None if fitting.config.target == "labels" else fitting.targets,
        hidden=fitting.config.hidden,
        updates=fitting.config.updates,
        seed=fitting.seed,
        device=fitting.data.device,
    )


def fit_precision_head(fitting: Fitting) -> Head:
    """The ridge with devices weighted by their predicted uncertainty about the sample."""
    head = fit_precision(fitting.ridge, fitting.features, fitting.targets)
    features, labels = fitting.held_out_features, fitting.held_out_labels
    heads = [head.with_strength(strength) for strength in STRENGTHS]  # of equally good ones the first
    return max(heads, key=lambda one: held_out_accuracy(one, features, labels, fitting.seed))


def held_out_accuracy(
    head: Head, features: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], seed: int
) -> float:
    """Mean accuracy of a head over subsets of devices; every number of failures has the same weight.

    Args:
        head: the fusion.
        features: features of each device, N arrays [n, d_i].
        labels: labels [n].
        seed: seed of the sample of subsets where a size has more than eight.
    """
    sizes = [
        [
            float((head.logits({i: features[i] for i in members(mask)}).argmax(axis=1) == labels).mean())
            for mask in of_size
        ]
        for _, of_size in sets_by_survivors(head.num_devices, _SETS, seed)
    ]
    return float(np.mean([np.mean(accuracy) for accuracy in sizes]))


def choose_ridge(
    head: RidgePerSet,
    features: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    candidates: Sequence[float],
    seed: int,
) -> float:
    """The λ with the highest ``held_out_accuracy``; the largest of equals.

    Args:
        head: a ridge head with any λ.
        features: features of each device, N arrays [n, d_i].
        labels: labels [n].
        candidates: values of λ.
        seed: seed of the sample of subsets where a size has more than eight.
    """
    return max((held_out_accuracy(head.with_ridge(ridge), features, labels, seed), ridge) for ridge in candidates)[1]


class Passes:
    """Sums over all augmented passes of the training split, with features [n, D] and labels [n] of the first samples.

    Args:
        width: width D of all features together.
        classes: number of classes K.
    """

    def __init__(self, width: int, classes: int) -> None:
        self.gram_matrix: NDArray[np.float64] = np.zeros((width + 1, width + 1))
        self.cross: NDArray[np.float64] = np.zeros((width + 1, classes))
        self._features = [np.empty((0, width), np.float32)]
        self._labels = [np.empty(0, np.int64)]
        self._targets = [np.empty((0, classes), np.float32)]
        self._samples = 0

    def add(self, features: NDArray[np.float32], targets: NDArray[Any], labels: NDArray[np.int64], kept: int) -> None:
        """Adds a batch; its features are stored while fewer than ``kept`` samples were seen."""
        gram_matrix, cross = gram(features, targets)
        self.gram_matrix += gram_matrix
        self.cross += cross
        if self._samples < kept:
            self._features.append(features)
            self._labels.append(labels)
            self._targets.append(targets.astype(np.float32))
        self._samples += len(labels)

    @property
    def features(self) -> NDArray[np.float32]:
        """Features of the stored samples [n, D]."""
        return np.concatenate(self._features)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of the stored samples [n]."""
        return np.concatenate(self._labels)

    @property
    def targets(self) -> NDArray[np.float32]:
        """Targets of the stored samples [n, K]: the teacher's logits, or one-hot labels."""
        return np.concatenate(self._targets)
