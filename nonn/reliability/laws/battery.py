"""Devices that run until their battery is empty, and are not charged again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.confidence import NORMAL_QUANTILE
from nonn.reliability.laws.base import BoolArray, FirstPassage, FloatArray, TimedLaw
from nonn.reliability.laws.requests import Independent

__all__ = ["Battery"]

_MOMENTS = 500  # midpoints of the time average
_DRAWS = 20_000  # of lifetimes, for the first passage with random lifetimes


class Battery(TimedLaw):
    """Lifetimes, fixed or gamma-distributed.

    ``probabilities`` are averages over the horizon, which starts with every battery charged.

    Args:
        life_s: mean lifetime of each device in seconds [N].
        sd_s: standard deviation of each lifetime [N]; 0 is a fixed lifetime.
        horizon_s: time to average over, in seconds.
        seed: seed of the simulated first passage.
    """

    kind = "battery"

    def __init__(self, life_s: FloatArray, sd_s: FloatArray, horizon_s: float, seed: int = 0, text: str = "") -> None:
        super().__init__(len(life_s), text)
        self.life_s, self.sd_s, self.horizon_s, self.seed = life_s, sd_s, horizon_s, seed

    def _p_dead(self, time_s: float) -> FloatArray:
        """Probability that each device is empty at a time [N]."""
        from scipy.stats import gamma

        spread = np.where(self.sd_s > 0, self.sd_s, 1.0)
        shape, scale = (self.life_s / spread) ** 2, spread**2 / self.life_s
        return np.where(self.sd_s > 0, gamma.cdf(time_s, shape, scale=scale), time_s >= self.life_s)

    def probability_of(self, up: BoolArray) -> FloatArray:
        """Average over the horizon: exact for fixed lifetimes, midpoints of 500 intervals otherwise."""
        if (self.sd_s == 0).all():
            edges = np.unique(np.concatenate([[0.0, self.horizon_s], self.life_s]).clip(0, self.horizon_s))
        else:
            edges = np.linspace(0, self.horizon_s, _MOMENTS + 1)
        result = np.zeros(len(up))
        for start, end in pairwise(edges):
            result += (end - start) / self.horizon_s * Independent(self._p_dead((start + end) / 2)).probability_of(up)
        return result

    def draw(self, rng: np.random.Generator, count: int) -> BoolArray:
        """Draws moments in the horizon and lifetimes."""
        return rng.uniform(0, self.horizon_s, (count, 1)) < self._lifetimes(rng, count)

    def _lifetimes(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Lifetimes [count, N]."""
        spread = np.where(self.sd_s > 0, self.sd_s, 1.0)
        drawn = rng.gamma((self.life_s / spread) ** 2, spread**2 / self.life_s, (count, self.num_devices))
        return np.where(self.sd_s > 0, drawn, self.life_s)

    def first_passage(self, good: NDArray[np.bool_]) -> FirstPassage:
        """The failure after which the subset is not good: exact for fixed lifetimes, else the mean of 20,000 draws."""
        fixed = bool((self.sd_s == 0).all())
        draws = 1 if fixed else _DRAWS
        lives = self._lifetimes(np.random.default_rng(self.seed), draws)
        order = lives.argsort(axis=1, kind="stable")
        deaths = np.take_along_axis(lives, order, axis=1)
        sets = len(good) - 1 - np.cumsum(1 << order, axis=1)  # [draws, N] after each failure
        sets = np.concatenate([np.full((draws, 1), len(good) - 1), sets], axis=1)
        times = np.concatenate([np.zeros((draws, 1)), deaths], axis=1)
        # Devices that fail at the same moment leave together: only the subset after the last of them occurs.
        last = np.concatenate([times[:, 1:] > times[:, :-1], np.ones((draws, 1), bool)], axis=1)
        bad = ~good[sets] & last
        falls = np.where(bad.any(axis=1), np.take_along_axis(times, bad.argmax(axis=1)[:, None], axis=1)[:, 0], np.inf)
        mean = float(falls.mean())
        if fixed or not np.isfinite(mean):
            return FirstPassage.certain(mean, "exact" if fixed else "simulated")
        half = NORMAL_QUANTILE * float(falls.std(ddof=1)) / draws**0.5
        return FirstPassage(mean, "simulated", mean - half, mean + half)
