"""The confidence level of every interval in nonn."""

from __future__ import annotations

from statistics import NormalDist

__all__ = ["CONFIDENCE", "NORMAL_QUANTILE"]

CONFIDENCE = 0.95
# Half-width of the interval of a normal estimate, in standard errors: 1.96.
NORMAL_QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
