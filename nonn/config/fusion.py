"""Tables of the experiment file about what a bundle contains: its fusion, and the formats of its students."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nonn.toml.constraints import Choice, Count, NotEmpty, NotNegative, Positive, Probability

__all__ = ["ExportConfig", "FusionConfig"]


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion of features into one answer."""

    train: Annotated[
        str,
        Choice("nonn.fusion.trained:TRAINED"),
        "fusion that students are trained through: absent devices count as zeros (zero-fill), as zeros with the sum "
        "scaled by N/|S| (rescale), as their replicas; or every device has a classifier (logit-average)",
    ] = "zero-fill"
    head: Annotated[
        str,
        Choice("nonn.fusion:HEADS", besides=("best",)),
        "fusion that is served: that of the training (trained); the same weights with zeros, scaled, or with the mean "
        "of absent features; a ridge or logistic regression for every subset; one network for all subsets with their "
        "mask as input (masked); the ridge, with devices weighted by their predicted uncertainty (precision); or of "
        "all these the most accurate on the held-out split (best)",
    ] = "ridge"
    target: Annotated[
        Literal["teacher", "labels"], "what the ridge is fitted to: the teacher's logits or one-hot labels"
    ] = "teacher"
    passes: Annotated[Count, "augmented passes over the training split that heads are fitted to"] = 4
    ridge: Annotated[tuple[Positive, ...], NotEmpty(), "candidates for λ, chosen on the held-out split"] = (
        1e-6,
        1e-5,
        1e-4,
        1e-3,
        1e-2,
        1e-1,
    )
    steps: Annotated[
        tuple[Count, ...], NotEmpty(), "logistic: candidates for the L-BFGS steps from the ridge, chosen like ridge"
    ] = (2, 5, 10, 20)
    balanced: Annotated[
        bool, "passes draw every class equally often, however rare it is; the second stage of objectives.gcl"
    ] = False
    head_to_tail: Annotated[
        Probability,
        "H2T: share of the features of a rare class's sample that is replaced by a frequent class's; 0: none",
    ] = 0.0
    hidden: Annotated[Count, "masked: hidden units"] = 512
    updates: Annotated[Count, "masked: optimiser steps, each with 512 samples"] = 1000
    samples: Annotated[Count, "logistic, masked: samples of the passes that they are fitted to"] = 50_000
    stored_mb: Annotated[
        NotNegative, "logistic: limit of the size of its stored subsets; the others fall back to their ridge"
    ] = 8.0
    temperature: Annotated[
        str,
        Choice("nonn.fusion.calibration:SCOPES", besides=("none",)),
        "calibration of the confidence on the held-out split: a temperature for every subset (set), for each number of "
        "answering devices (survivors), or what the samples suffice for (auto)",
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The formats of the students and of their replies."""

    weights: Annotated[Literal["float32", "int8"], "type of weights; int8 is a quarter of the size"] = "float32"
    features: Annotated[
        str, Choice("nonn.bundle.features:FEATURE_DTYPES"), "type of sent features; int8 is one byte per feature"
    ] = "float32"
    calibration: Annotated[Count, "training inputs from which the ranges of int8 are measured"] = 512
    originals: Annotated[
        bool, "a bundle of int8 students also contains the float32 ones, for other runtimes; nodes do not need them"
    ] = True
    recorded: Annotated[bool, "the bundle contains its test features, for the simulator; nodes do not need them"] = True
