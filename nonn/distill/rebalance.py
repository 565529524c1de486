"""Samples that heads are fitted to when some classes are rare: class-balanced sampling and head-to-tail features.

Both change the cached features and not the students, so they suit every head; see ``nonn.distill.fitting``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["balanced_order", "head_to_tail"]


def balanced_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """As many sample numbers as there are labels [n], drawn with replacement so that classes are equally likely.

    Source: the second stage of GCL (Li, Cheung, Lu 2022), and of decoupled training before it.
    """
    counts = np.bincount(labels)
    weight = 1.0 / counts[labels]
    return rng.choice(len(labels), size=len(labels), p=weight / weight.sum())


def head_to_tail(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_counts: NDArray[np.int64],
    share: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """H2T: a random share ρ of the features of a rare class's sample is that of a frequent class's; its label stays.

    Args:
        features: concatenated features of all devices [B, D].
        labels: [B].
        class_counts: training samples of each class [K]; classes below their median are rare, the others frequent.
        share: ρ.
        rng: draws the features and the samples that give them.

    Returns:
        [B, D]; unchanged where the batch has no frequent class, or all classes are equally frequent.

    Source: Li, Lu, Zhang, Cheung 2024, arXiv 2306.06963: 0.25 to 0.3 there, on the last feature maps of a frozen
    network, where this is on pooled features of all devices.
    """
    rare = (class_counts < np.median(class_counts[class_counts > 0]))[labels]
    tail, head = np.flatnonzero(rare), np.flatnonzero(~rare)
    if not len(tail) or not len(head):
        return features
    result = features.copy()
    # As many features of every sample, in random places.
    number = round(share * features.shape[1])
    places = rng.random((len(tail), features.shape[1])).argsort(axis=1)[:, :number]
    rows = tail[:, None]
    result[rows, places] = features[rng.choice(head, size=len(tail))[:, None], places]
    return result
