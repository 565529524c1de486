"""Fits the fusion heads that can be served.

====================  ================================================================================================
``fusion.head``       meaning
====================  ================================================================================================
``trained``           the fusion through which the students were trained
``zero-fill``         the trained layer of all devices; an absent one counts as zeros
``rescale``           the same, scaled by N/|S|
``mean-fill``         the same; an absent device counts as the mean of its features
``ridge``             a ridge regression for every subset of devices, to the teacher's logits or to the labels
``logistic``          a logistic regression for every subset of devices, a few steps from the ridge
``masked``            one network for all subsets of devices, with their mask as an input
``best``              the one of these with the highest accuracy on the held-out split
====================  ================================================================================================

Regressions and the network are fitted to augmented passes over the training split, since students overfit the original
images; the values of λ, the number of steps, the head and the temperatures are chosen on the held-out split. The
features of all passes are computed once for all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nonn.config import FusionConfig
from nonn.data import Split
from nonn.distill.logistic import fit_logistic
from nonn.distill.masked import fit_masked
from nonn.distill.students import Students
from nonn.fusion import Head, LinearHead, MeanFill, Rescale, RidgePerSet, ZeroFill, gram
from nonn.fusion.calibration import Fusion, fit_temperatures
from nonn.reliability.subsets import members, sets_by_survivors
from nonn.teacher import Teacher
from nonn.toml import choices
from nonn.trainer import batches, epoch_generator

__all__ = ["KINDS", "HeadFitter", "choose_ridge", "held_out_accuracy"]

KINDS = tuple(kind for kind in choices(FusionConfig, "head") if kind != "best")

_PASS = 1_000_000  # passes use generators of other epochs than training
_SETS = 8  # subsets of each size on which λ and the ``best`` head are chosen: 57 of 255 for eight devices


@dataclass(frozen=True)
class HeadFitter:
    """Fits heads to the students of one experiment.

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

    def fit(self, teacher: Teacher, students: Students) -> Head:
        """Fits the head that ``fusion.head`` names; of equally good ones the simplest.

        Args:
            teacher: gives the targets of the ridge.
            students: gives the features and the fusion through which they were trained.
        """
        if self.config.head != "best":
            return self.fit_all(teacher, students, (self.config.head,))[self.config.head]
        heads, features = self.fit_all(teacher, students), self.held_out_features(students)
        score = {k: held_out_accuracy(head, features, self.held_out.labels, self.seed) for k, head in heads.items()}
        return heads[max(KINDS, key=lambda kind: score[kind])]

    def fit_all(self, teacher: Teacher, students: Students, kinds: Sequence[str] = KINDS) -> dict[str, Head]:
        """Fits several heads to the same students.

        Args:
            teacher: gives the targets of the ridge.
            students: gives the features and the fusion through which they were trained.
            kinds: heads to fit, of ``KINDS``.

        Returns:
            The heads, by kind. ``trained`` is a head of the kind of the students' fusion.
        """
        students.to(self.device).eval()
        teacher.to(self.device).eval()
        trained = students.fusion.head()
        assert isinstance(trained, LinearHead)
        # With any fusion, all devices together are one linear layer over all features.
        weight, bias = trained.weights((1 << trained.num_devices) - 1)
        heads: dict[str, Head] = {
            "trained": trained,
            "zero-fill": ZeroFill(weight, bias, trained.widths),
            "rescale": Rescale(weight, bias, trained.widths),
        }
        recorded = self.held_out_features(students)
        if fitted := set(kinds) - heads.keys():
            kept = self.config.samples if fitted & {"logistic", "masked"} else 0
            passes = self._passes(teacher, students, kept)
            ridge = RidgePerSet(passes.gram_matrix, passes.cross, self.config.ridge[0], trained.widths)
            heads["mean-fill"] = MeanFill(weight, bias, trained.widths, ridge.mean)
            if fitted & {"ridge", "logistic"}:
                chosen = choose_ridge(ridge, recorded, self.held_out.labels, self.config.ridge, self.seed)
                heads["ridge"] = ridge = ridge.with_ridge(chosen)
            if "logistic" in kinds:
                heads["logistic"] = self._logistic(ridge, passes, recorded)
            if "masked" in kinds:
                heads["masked"] = fit_masked(
                    trained,
                    passes.features,
                    passes.labels,
                    None if self.config.target == "labels" else passes.targets,
                    hidden=self.config.hidden,
                    updates=self.config.updates,
                    seed=self.seed,
                    device=self.device,
                )
        return {kind: heads[kind].with_temperatures(self.temperatures(heads[kind], recorded)) for kind in kinds}

    def held_out_features(self, students: Students) -> list[NDArray[np.float32]]:
        """Features of each device over the original held-out split, N arrays [n, d_i]."""
        with torch.no_grad():
            chunks = [students.features(raw) for raw in batches(self.held_out.inputs, self.device)]
        return [torch.cat(f).cpu().numpy() for f in zip(*chunks, strict=True)]

    def temperatures(self, head: Fusion, recorded: Sequence[NDArray[np.float32]]) -> NDArray[np.float64] | None:
        """Temperatures of the confidence, as ``fusion.temperature`` has them.

        Args:
            head: the fusion.
            recorded: result of ``held_out_features``.

        Returns:
            One for each subset of devices [2^N]; None where none are fitted.
        """
        by = self.config.temperature
        if by == "none":
            return None
        return fit_temperatures(head, recorded, self.held_out.labels, by=by, seed=self.seed)

    def _logistic(self, ridge: RidgePerSet, passes: _Passes, recorded: Sequence[NDArray[np.float32]]) -> Head:
        return fit_logistic(
            ridge,
            passes.features,
            passes.labels,
            recorded,
            self.held_out.labels,
            steps=self.config.steps,
            limit_bytes=int(self.config.stored_mb * 1e6),
            device=self.device,
        )

    @torch.no_grad()
    def _passes(self, teacher: Teacher, students: Students, kept: int) -> _Passes:
        """Runs students and teacher over augmented passes; stores the features of about the first ``kept`` samples."""
        width, classes = sum(students.fusion.widths), students.fusion.linear.out_features
        passes = _Passes(width, classes)
        for number in range(self.config.passes):
            generator, start = epoch_generator(self.seed, _PASS + number), 0
            for raw in batches(self.train.inputs, self.device):
                labels = self.train.labels[start : start + len(raw)]
                varied = self.augment(raw, generator)
                features = torch.cat(students.features(varied), dim=1).cpu().numpy()
                if self.config.target == "labels":
                    targets = np.eye(classes)[labels]
                else:
                    targets = teacher(varied)[1].cpu().numpy()
                passes.add(features, targets, labels, kept)
                start += len(raw)
        return passes


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


class _Passes:
    """Sums over all augmented passes, with features [n, D] and labels [n] of the first samples.

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
