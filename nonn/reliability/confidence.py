"""The confidence level of every interval that nonn gives."""

from __future__ import annotations

from statistics import NormalDist

__all__ = ["CONFIDENCE", "NORMAL_QUANTILE"]

CONFIDENCE = 0.95
# Standard errors that the interval of a normal estimate reaches to each side: 1.96.
NORMAL_QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
