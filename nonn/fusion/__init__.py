"""Fusion: from the features of the devices that answered to logits, for any subset S of the devices.

Every head here but two is linear in the features that arrived: ``z_S = concat(f_i, i in S) · W_S + b_S``. Linear heads
differ only in how W_S depends on S:

- ``ZeroFill``: one fully connected layer; an absent device contributes zeros (NoNN, Bhardwaj et al. 2019).
- ``Rescale``: the same, with the features that arrived scaled by N/|S|, as in dropout.
- ``MeanFill``: the same, but an absent device contributes the mean of its features, which folds into the bias.
- ``ReplicaAverage``: devices that learned the same part are averaged over those that arrived, then one fully
  connected layer over the parts (Jeong, Park, Yang 2021).
- ``LogitAverage``: every device has its own classifier; the logits that arrived are averaged.
- ``RidgePerSet``: a separate head for each subset, solved on demand from one Gram matrix that was fitted to the
  teacher's logits or to the labels. Reduced models per missing pattern beat imputation (Saar-Tsechansky &
  Provost 2007).
- ``LogisticPerSet``: a multinomial logistic regression for each subset, solved at fitting time and stored; subsets
  beyond the size limit use the ridge.

``MaskedHead`` is one small network for all subsets: features of absent devices are zeros, and the mask is an input.
``PrecisionHead`` is the ridge of each subset with devices weighted by their predicted uncertainty about the sample.

A head may have a temperature for each subset. It divides the logits only for the confidence: the logits themselves,
and so every answer and every accuracy table, do not change (``nonn.fusion.calibration``).

NumPy only, in float64: the aggregator and the simulator fuse with the same code, one request at a time or ten thousand
at once, with the same result to the last printed digit.
"""

from __future__ import annotations

from nonn.fusion.head import HEADS, Head, head_from_arrays, softmax
from nonn.fusion.linear import LinearHead
from nonn.fusion.logistic import LogisticPerSet
from nonn.fusion.masked import MaskedHead
from nonn.fusion.precision import PrecisionHead
from nonn.fusion.ridge import RidgePerSet, gram
from nonn.fusion.trained import LogitAverage, MeanFill, ReplicaAverage, Rescale, ZeroFill

__all__ = [
    "HEADS",
    "Head",
    "LinearHead",
    "LogisticPerSet",
    "LogitAverage",
    "MaskedHead",
    "MeanFill",
    "PrecisionHead",
    "ReplicaAverage",
    "Rescale",
    "RidgePerSet",
    "ZeroFill",
    "gram",
    "head_from_arrays",
    "softmax",
]
