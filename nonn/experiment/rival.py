"""A method of a study with a fusion that nonn does not serve: its students, and a function from features to logits.

A method whose fusion is one of the heads needs no ``Rival``: it is a few overrides of the experiment file. Any other
method has a ``build`` function in ``nonn.experiment.methods``, which gets the workspace and the trained students of its
row and returns a ``Rival``; the study calibrates, enumerates and measures it like every head.

Limits: a rival is compared, never written to a bundle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nonn.distill import Students
from nonn.experiment.workspace import Workspace
from nonn.fusion import softmax
from nonn.fusion.head import Features, FloatArray
from nonn.trainer import batches, epoch_generator

__all__ = ["Answer", "Rival", "SubsetFunction", "training_features"]

Answer = Callable[[Features], FloatArray]

_PASS = 2_000_000  # augmentation of other epochs than those of training and of fitting heads


@dataclass(frozen=True)
class Rival:
    """A method as it is evaluated.

    Attributes:
        students: the student of each device, whose features are sent; the fusion of the object is not used.
        answer: the features that arrived, device number → [n, d_i] for any subset but the empty one, to logits [n, K].
    """

    students: Students
    answer: Answer


@dataclass(frozen=True)
class SubsetFunction:
    """A function of the features that arrived, in the place of a head.

    Attributes:
        num_devices: N.
        num_classes: K.
        answer: the features that arrived → logits [n, K].
        temperatures: temperature of the confidence of each subset [2^N]; None is 1 everywhere.
    """

    num_devices: int
    num_classes: int
    answer: Answer
    temperatures: FloatArray | None = None

    def logits(self, features: Features) -> FloatArray:
        """Fused logits [n, K] of the features that arrived."""
        return self.answer(features)

    def probabilities(self, logits: NDArray[np.floating], mask: int) -> FloatArray:
        """Calibrated probabilities [n, K] of logits of one subset."""
        return softmax(logits if self.temperatures is None else logits / self.temperatures[mask])

    def calibrated(self, space: Workspace, students: Students) -> SubsetFunction:
        """The same function with temperatures that are fitted on the held-out split, as those of every head are."""
        recorded = space.heads.held_out_features(students)
        return dataclasses.replace(self, temperatures=space.heads.temperatures(self, recorded))


@torch.no_grad()
def training_features(space: Workspace, students: Students) -> NDArray[np.float32]:
    """Features of all devices over augmented training inputs, for a fusion that is fitted to them.

    Args:
        space: workspace of the row.
        students: the trained students.

    Returns:
        Features [n, D], devices in order: ``fusion.passes`` passes over the training split, at most about
        ``fusion.samples`` samples.
    """
    students.to(space.device).eval()
    config, chunks = space.experiment.fusion, list[NDArray[np.float32]]()
    for number in range(config.passes):
        generator = epoch_generator(space.seed, _PASS + number)
        for raw in batches(space.data.train.inputs, space.device):
            if sum(map(len, chunks)) >= config.samples:
                break
            chunks.append(torch.cat(students.features(space.augment(raw, generator)), dim=1).cpu().numpy())
    return np.concatenate(chunks)
