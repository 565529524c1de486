"""Fusion: from the features of the devices that answered to logits, for any answering set S.

Every head here is linear in the features that arrived: ``z_S = concat(f_i, i in S) · W_S + b_S``. Heads differ only
in how W_S depends on S:

- ``ZeroFill``: one fully connected layer; an absent device counts as zeros (NoNN, Bhardwaj et al. 2019).
- ``Rescale``: the same, and what arrived is scaled by N/|S|, as dropout does.
- ``MeanFill``: the same, and an absent device counts as the mean of its features, which folds into the bias.
- ``ReplicaAverage``: devices that learned the same part are averaged over those that arrived, then one fully
  connected layer over the parts (Jeong, Park, Yang 2021).
- ``LogitAverage``: every device has a classifier of its own; those that arrived are averaged.
- ``RidgePerSet``: a head of its own for every answering set, solved on demand from one Gram matrix that was fitted
  to the teacher's logits, or to the labels. Reduced models per missing pattern beat imputation (Saar-Tsechansky &
  Provost 2007).
- ``LogisticPerSet``: a multinomial logistic regression for every answering set, solved when it was fitted and stored;
  sets for which there was no room have their ridge.

A head may carry a temperature for every answering set. It divides the logits for the confidence alone: the logits
themselves, and with them every answer and every accuracy table, stay as they are (``nonn.fusion.calibration``).

NumPy only, in float64: the aggregator and the simulator fuse with the same lines, one request at a time or ten
thousand at once, with the same result to the last printed digit.
"""

from __future__ import annotations

from nonn.fusion.head import Head, head_from_arrays, softmax
from nonn.fusion.logistic import LogisticPerSet
from nonn.fusion.ridge import RidgePerSet, gram
from nonn.fusion.trained import LogitAverage, MeanFill, ReplicaAverage, Rescale, ZeroFill

__all__ = [
    "Head",
    "LogisticPerSet",
    "LogitAverage",
    "MeanFill",
    "ReplicaAverage",
    "Rescale",
    "RidgePerSet",
    "ZeroFill",
    "gram",
    "head_from_arrays",
    "softmax",
]
