"""The arithmetic of the consistency test on one set of devices; ``nonn.fusion.consistency`` has the method.

Everything that depends on the set only is computed once: one answer needs a dozen small NumPy calls, and each of them
costs as much as its arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DeviceSet", "Float32"]

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSet:
    """A set of n devices and its constants. Devices with fewer features than others have zeros behind them.

    Attributes:
        devices: their numbers, in order.
        widths: feature width of each.
        low: lower ends of the widened ranges [n, 1, d]; minus infinity where a device has no feature.
        high: upper ends; infinity there.
        readout: R [n, d, K].
        bias: estimate at features of zero [n, 1, K].
        offset: a [n, 1, K].
        slope: b.
        inverse: 1 / (σ √K).
        scale: 1 / the 90 % quantile of the statistics [n, 1].
    """

    devices: tuple[int, ...]
    widths: tuple[int, ...]
    low: Float32
    high: Float32
    readout: Float32
    bias: Float32
    offset: Float32
    slope: Float32
    inverse: Float32
    scale: Float32

    def stack(self, features: Mapping[int, Float32]) -> Float32:
        """Features of the devices as one array [n, B, d]."""
        num, widest, batch = len(self.devices), self.low.shape[2], len(features[self.devices[0]])
        if min(self.widths) == widest:
            return np.concatenate([features[i] for i in self.devices]).reshape(num, batch, widest)
        stacked = np.zeros((num, batch, widest), np.float32)
        for place, i in enumerate(self.devices):
            stacked[place, :, : self.widths[place]] = features[i]
        return stacked

    def clip(self, features: Mapping[int, Float32]) -> tuple[Mapping[int, Float32], Float32]:
        """Features in their widened range, by device (the same object if all are) and as one array [n, B, d]."""
        stacked = self.stack(features)
        clipped = np.minimum(np.maximum(stacked, self.low), self.high)
        if not np.count_nonzero(clipped != stacked):
            return features, stacked
        return {i: clipped[place, :, : self.widths[place]] for place, i in enumerate(self.devices)}, clipped

    def estimates(self, stacked: Float32) -> Float32:
        """Each device's own estimate of the fused logits [n, B, K] from the features [n, B, d]."""
        estimates: Float32 = np.matmul(stacked, self.readout)
        estimates += self.bias
        return estimates

    def deviations(self, estimates: Float32) -> tuple[Float32, Float32]:
        """Statistics before they are divided by their quantile [n, B], and the consensus [B, K]."""
        consensus = _median(estimates)
        errors = estimates - self.offset
        errors -= self.slope * consensus
        errors *= self.inverse
        rms: Float32 = np.sqrt(np.einsum("nbk,nbk->nb", errors, errors))
        rms /= 0.5 + 0.5 * _median(rms)
        return rms, consensus

    def statistics(self, estimates: Float32) -> tuple[Float32, Float32]:
        """Statistics s [n, B] and the consensus [B, K]."""
        deviations, consensus = self.deviations(estimates)
        deviations *= self.scale
        return deviations, consensus


def _median(values: Float32) -> Float32:
    """Median over the first axis; np.median takes three times as long on arrays of this size."""
    ordered, half = np.sort(values, axis=0), len(values) // 2
    result: Float32 = ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) * np.float32(0.5)
    return result
