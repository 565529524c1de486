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
``precision``         the ridge, with devices weighted by their predicted uncertainty about the sample
``best``              the one of these with the highest accuracy on the held-out split
====================  ================================================================================================

Regressions and the network are fitted to augmented passes over the training split, since students overfit the original
images; the values of λ, the number of steps, the head and the temperatures are chosen on the held-out split. The
features of all passes are computed once for all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.distill.fitting import Fitting, FittingData, choose_ridge, held_out_accuracy
from nonn.distill.students import Students
from nonn.errors import ConfigError
from nonn.fusion import HEADS, Head
from nonn.fusion.calibration import Fusion, fit_temperatures
from nonn.fusion.head import OF_SUMS
from nonn.teacher import Teacher

__all__ = ["KINDS", "HeadFitter", "choose_ridge", "held_out_accuracy"]

KINDS = HEADS.own  # those that ``best`` chooses from


@dataclass(frozen=True)
class HeadFitter(FittingData):
    """Fits heads to the students of one experiment."""

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
        fitting = Fitting(self, teacher, students, keeps_samples=not set(kinds) <= OF_SUMS)
        heads = {}
        for kind in kinds:
            head: object = HEADS.load(kind, "fusion.head")(fitting)
            if not isinstance(head, Head):
                raise ConfigError(f"fusion.head = {kind!r}: gave a {type(head).__name__}, not a nonn.fusion.Head")
            heads[kind] = head.with_temperatures(self.temperatures(head, fitting.held_out_features))
        return heads

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
