"""Consistency test: finds devices whose features contradict those of the other devices, for each request.

A device that lies (broken, overheated, or attacked) sends features of the right shape that are wrong. The other
devices have seen the same input, so their features predict its features. The prediction uses second moments only:

1. *Estimates.* Each device i gives its own estimate of the fused logits, the conditional mean of a Gaussian,
   ``z_i = E[z | f_i] = z̄ + (f_i − f̄_i) R_i`` with ``R_i = (Σ_ii + λI)⁻¹ Σ_i: W``. W is the head of all N devices, Σ the
   covariance of the features. R_i [d_i, K] is stored, so that every kind of head has the same test.
2. *Consensus.* ``c`` is the median of the z_i, class by class. Fewer than half of the devices cannot move a median
   beyond the values of the honest ones, however large their features are, and so cannot hide each other.
3. *Residual.* ``e_ik = (z_ik − a_ik − b_ik c_k) / σ_ik``, with the regression a, b and its error σ from the held-out
   split, and ``t_i = rms_k(e_ik)``. Some inputs are hard for all devices, so t_i is divided by the mean of 1 and the
   median of all t. The statistic ``s_i`` is the result over its 90 % quantile for as many answering devices.
4. *Threshold.* Above its 90 % quantile the statistic of honest devices is taken as exponential,
   ``P(s_i > x) = 0.1 exp(−(x − 1) / β)``. β is the mean excess on the held-out split, above the 90 % or the 95 %
   quantile, whichever is larger (it grows where the tail is heavier), plus two standard errors. A device is excluded
   where this probability is below ``rate / (n B)``, for n devices and B samples: at most ``rate`` of all requests lose
   an honest device. The threshold is at least 1.4 times the largest value on the held-out split.

The device with the largest statistic is excluded first and the others are tested again, up to f = ⌈n/2⌉ − 1 devices.
If more than f fail, the input is unlike the data, or the liars are a majority: no device is excluded.

Before the test, features are clipped to their range at build time, widened by its own width at each end.

Limits: at least three answering devices. A lie that changes a device's estimate by no more than honest devices differ
is not found in one request; ``nonn.reliability.suspicion`` accumulates over requests. The exponential tail is an
extrapolation: n samples without an exclusion support a rate of 3 / n (95 % confidence), not less.

References: Huber and Ronchetti 2009, "Robust Statistics", for the median's breakdown point; Balkema and de Haan 1974,
Pickands 1975, for the excess over a threshold; Blanchard et al. 2017, arXiv 1703.02757, for f of n Byzantine workers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import BundleError, ShapeError
from nonn.fusion.device_set import DeviceSet, Float32

__all__ = ["RATE", "Consistency", "ConsistencyVerdict"]

RATE = 1e-5  # requests in which an honest device may be excluded
MIN_DEVICES = 3

BODY = 0.9  # quantile above which the tail is fitted
_MARGIN = 1.4  # threshold over the largest held-out value
_CACHED = 64  # sets of devices whose constants are kept, a few kilobytes each


@dataclass(frozen=True, eq=False)
class ConsistencyVerdict:
    """The result of one test.

    Attributes:
        features: the features to fuse: clipped, without the excluded devices.
        excluded: devices that contradict the others, in the order of their exclusion.
        surprise: ``P(s_i > x)`` of each tested device if it is honest, for its most surprising sample of the batch.
        undecided: more devices fail than can be excluded; none is.
        consensus: consensus of the first sample [K], in standard deviations; to recognise repeated inputs.
    """

    features: Mapping[int, Float32]
    excluded: tuple[int, ...] = ()
    surprise: Mapping[int, float] = field(default_factory=dict)
    undecided: bool = False
    consensus: Float32 | None = None


class Consistency:
    """Tests of the devices of one bundle, from its ``consistency.npz``; thread-safe.

    Args:
        arrays: result of ``to_arrays``.
        widths: feature width d_i of each device [N].

    Raises:
        BundleError: an array is missing or has a wrong shape.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], widths: Sequence[int]) -> None:
        self._arrays, self.widths = dict(arrays), tuple(widths)
        num, ends = len(self.widths), np.cumsum([0, *widths]).tolist()
        try:
            readout = arrays["readout"].astype(np.float32) * arrays["readout_scale"].astype(np.float32)
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("offset", "slope", "scale"), (num, readout.shape[1]))
            shapes |= {"level": (num + 1, num), "tail": (num + 1,), "peak": (num + 1,)}
            shapes |= dict.fromkeys(("low", "high", "mean"), (ends[-1],))
            for name, shape in shapes.items():
                if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                    raise BundleError(f"consistency.npz: '{name}' {list(arrays[name].shape)}, expected {list(shape)}")
            if len(readout) != ends[-1]:
                raise BundleError(f"consistency.npz: readout of {len(readout)} rows for widths {self.widths}")
            self._offset, self._slope, scale, self._level, low, high, mean = (
                arrays[name].astype(np.float32) for name in ("offset", "slope", "scale", "level", "low", "high", "mean")
            )
            self._tail, self._peak = arrays["tail"].tolist(), arrays["peak"].tolist()
        except (KeyError, IndexError) as exc:
            raise BundleError(f"consistency.npz: lacks {exc}; build the bundle again") from exc
        # 1 / σ, with the mean over classes of the squares in it.
        self._inverse: Float32 = np.float32(1) / (scale * np.float32(math.sqrt(readout.shape[1])))
        rows = [slice(a, b) for a, b in pairwise(ends)]
        self._bias = np.stack([-mean[row] @ readout[row] for row in rows])  # [N, K]
        widest = max(self.widths)
        # Devices with fewer features than others get zeros, which are never clipped and add nothing.
        self._readout = np.zeros((num, widest, readout.shape[1]), np.float32)
        self._ends = np.stack([np.full((num, widest), end, np.float32) for end in (-np.inf, np.inf)])  # [2, N, d]
        for i, row in enumerate(rows):
            self._readout[i, : self.widths[i]] = readout[row]
            self._ends[:, i, : self.widths[i]] = low[row], high[row]
        self._sets = OrderedDict[tuple[int, ...], DeviceSet]()

    @property
    def num_devices(self) -> int:
        """N."""
        return len(self.widths)

    @property
    def readout(self) -> list[Float32]:
        """R of each device, N arrays [d_i, K]: its regression of the fused logits."""
        return [self._readout[i, :width] for i, width in enumerate(self.widths)]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays from which it is made."""
        return self._arrays

    def _set(self, devices: tuple[int, ...]) -> DeviceSet:
        """A set of devices, with its constants."""
        kept = self._sets.get(devices)
        if kept is None:
            which = list(devices)
            low, high = self._ends[:, which, None]
            bias, offset, slope, inverse = (
                v[which][:, None] for v in (self._bias, self._offset, self._slope, self._inverse)
            )
            scale = np.float32(1) / self._level[len(devices), which][:, None]
            widths = tuple([self.widths[i] for i in devices])
            kept = DeviceSet(devices, widths, low, high, self._readout[which], bias, offset, slope, inverse, scale)
            self._sets[devices] = kept
            while len(self._sets) > _CACHED:
                self._sets.pop(next(iter(self._sets)), None)
        return kept

    def clip(self, features: Mapping[int, Float32]) -> Mapping[int, Float32]:
        """Features in their widened range, the same object if all are."""
        return self._set(tuple(sorted(features))).clip(features)[0]

    def estimates(self, features: Mapping[int, Float32]) -> Float32:
        """Each device's own estimate of the fused logits [n, B, K], in the order of the devices."""
        these = self._set(tuple(sorted(features)))
        return these.estimates(these.stack(features))

    def deviations(self, features: Mapping[int, Float32]) -> Float32:
        """Statistics of some devices before they are divided by their quantile [n, B], in the order of the devices."""
        return self._set(tuple(sorted(features))).deviations(self.estimates(features))[0]

    def statistics(self, features: Mapping[int, Float32]) -> Float32:
        """The statistics s [n, B] of at least three devices, in their order.

        Args:
            features: clipped features, device → [B, d_i].
        """
        return self._set(tuple(sorted(features))).statistics(self.estimates(features))[0]

    def threshold(self, num_devices: int, num_samples: int = 1, rate: float = RATE) -> float:
        """Statistic above which one of n devices is excluded.

        Args:
            num_devices: n, of those that answered.
            num_samples: B of the batch.
            rate: share of requests in which an honest device may be excluded.
        """
        tail = 1 + self._tail[num_devices] * math.log((1 - BODY) * num_devices * num_samples / rate)
        return float(max(tail, _MARGIN * self._peak[num_devices]))

    def surprise(self, statistic: float, num_devices: int, num_samples: int = 1) -> float:
        """Bound on the probability that the largest statistic of an honest device in a batch is above a value."""
        if statistic <= 1:
            return 1.0
        tail = (1 - BODY) * math.exp(-(statistic - 1) / self._tail[num_devices])
        return min(1.0, num_samples * tail)

    def test(self, features: Mapping[int, Float32], rate: float = RATE) -> ConsistencyVerdict:
        """Tests the devices that answered one request.

        Args:
            features: device → its features [B, d_i].
            rate: share of requests in which an honest device may be excluded.

        Raises:
            ShapeError: a device is unknown or has another width.
        """
        for i, f in features.items():
            if not 0 <= i < len(self.widths) or f.shape[1] != self.widths[i]:
                raise ShapeError(f"device {i}: features {list(f.shape)}; the bundle has widths {self.widths}")
        if not features:
            return ConsistencyVerdict(features)
        these = self._set(tuple(sorted(features)))
        clipped, stacked = these.clip(features)
        num, excluded, surprise = len(clipped), list[int](), dict[int, float]()
        if num < MIN_DEVICES:
            return ConsistencyVerdict(clipped)
        estimates, batch, first = these.estimates(stacked), stacked.shape[1], None
        while (left := len(these.devices)) >= MIN_DEVICES:
            statistics, consensus = these.statistics(estimates)
            first = consensus[0] if first is None else first
            worst = (statistics[:, 0] if batch == 1 else statistics.max(axis=1)).tolist()
            for i, x in zip(these.devices, worst, strict=True):
                surprise[i] = self.surprise(x, left, batch) if x > 1 else 1.0
            if max(worst) <= self.threshold(left, batch, rate):
                break
            if len(excluded) == (num - 1) // 2:
                return ConsistencyVerdict(clipped, (), surprise, undecided=True, consensus=first)
            place = worst.index(max(worst))
            excluded.append(these.devices[place])
            these = self._set(these.devices[:place] + these.devices[place + 1 :])
            estimates = np.delete(estimates, place, axis=0)
        fused = {i: f for i, f in clipped.items() if i not in excluded} if excluded else clipped
        return ConsistencyVerdict(fused, tuple(excluded), surprise, consensus=first)
