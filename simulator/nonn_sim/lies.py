"""Lies: the wrong features that devices send, made from the recorded features of a bundle.

============== ==========================================================================================
``huge``       ±3·10³⁸, the largest that a reply may have
``x100``       a hundred times its features
``adversary``  each feature at the end of its recorded range that moves the fused logits most towards the
               class that is second; the liar knows the features of all devices and the head
``rare``       the same in one request of twenty
``stealth``    the same, moved back towards its honest features until the test just passes: it knows the test
``constant``   always the features of one sample
``replay``     features of another sample
``permuted``   its features in another order, as after a change of the network's layout
``flipped``    mirrored inside their range, as with a wrong sign
``drift``      each feature moves away from its value, from none to four standard deviations over the requests, as
               with a sensor that loses its calibration
============== ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.errors import BundleError, ConfigError
from nonn.fusion import LinearHead

__all__ = ["LIES", "Lie", "Recording", "check_lies"]

Float32 = NDArray[np.float32]
Lie = Callable[["Recording", tuple[int, ...]], dict[int, Float32]]

_STEPS = 12  # halvings of the search for the largest lie that passes
DRIFT_SD = np.float32(4)


class Recording:
    """The recorded features of a bundle, and what is needed to lie about them.

    Args:
        bundle: a bundle with recorded features and the test of its devices.
        seed: of the lies that are drawn.

    Raises:
        BundleError: it lacks one of them.
    """

    def __init__(self, bundle: Bundle, seed: int = 0) -> None:
        consistency = bundle.consistency
        if consistency is None:
            raise BundleError(f"{bundle.path}: no consistency.npz, so nothing finds a liar; build the bundle again")
        self.bundle, self.head, self.consistency = bundle, bundle.head, consistency
        features, self.labels = bundle.features
        self.features = [np.asarray(f, np.float32) for f in features]
        self.seed = seed
        logits = self.head.logits(dict(enumerate(self.features)))
        first = logits.argmax(axis=1)
        logits[np.arange(len(logits)), first] = -np.inf
        self.first, self.second = first, logits.argmax(axis=1)

    def rng(self, *stream: int) -> np.random.Generator:
        """A generator of one purpose."""
        return np.random.default_rng([self.seed, *stream])

    def adversary(self, liars: tuple[int, ...]) -> dict[int, Float32]:
        """The ends of the range that favour the second class."""
        if isinstance(self.head, LinearHead):
            weight = self.head.weights((1 << self.head.num_devices) - 1)[0]
        else:  # the linear estimate of its logits from each device
            weight = np.concatenate(self.consistency.readout).astype(np.float64)
        lies = {}
        for i in liars:
            own, features = weight[self.head.offsets[i] : self.head.offsets[i + 1]], self.features[i]
            favours = own[:, self.second] > own[:, self.first]
            lies[i] = np.where(favours.T, features.max(axis=0), features.min(axis=0)).astype(np.float32)
        return lies

    def stealth(self, liars: tuple[int, ...]) -> dict[int, Float32]:
        """The largest share of ``adversary`` that passes the test of a single request."""
        full, threshold = self.adversary(liars), self.consistency.threshold(self.head.num_devices)
        low, high = np.zeros((len(self.labels), 1), np.float32), np.ones((len(self.labels), 1), np.float32)
        for _ in range(_STEPS):
            share = (low + high) * np.float32(0.5)
            tried = dict(enumerate(self.features)) | self._blend(full, share)
            statistics = self.consistency.statistics(self.consistency.clip(tried))
            passes = (statistics.max(axis=0) <= threshold)[:, None]
            low, high = np.where(passes, share, low), np.where(passes, high, share)
        return self._blend(full, low)

    def _blend(self, lies: dict[int, Float32], share: NDArray[Any]) -> dict[int, Float32]:
        return {i: self.features[i] + share * (lie - self.features[i]) for i, lie in lies.items()}


def _each(change: Callable[[Recording, int, Float32], Float32]) -> Lie:
    """A lie of one device that does not depend on the other liars."""
    return lambda recording, liars: {i: change(recording, i, recording.features[i]) for i in liars}


def _huge(recording: Recording, i: int, f: Float32) -> Float32:
    return np.where(recording.rng(1, i).random(f.shape) < 0.5, 3e38, -3e38).astype(np.float32)


def _replay(recording: Recording, i: int, f: Float32) -> Float32:
    return f[recording.rng(2, i).permutation(len(f))]


def _permuted(recording: Recording, i: int, f: Float32) -> Float32:
    return f[:, recording.rng(3, i).permutation(f.shape[1])]


def _drifted(recording: Recording, i: int, f: Float32) -> Float32:
    """At the end of the drift."""
    sign = recording.rng(6, i).choice(np.array([-1, 1], np.float32), f.shape[1])
    moved: Float32 = f + DRIFT_SD * f.std(axis=0) * sign
    return moved


LIES: dict[str, Lie] = {
    "huge": _each(_huge),
    "x100": _each(lambda recording, i, f: 100 * f),
    "adversary": Recording.adversary,
    "rare": Recording.adversary,
    "stealth": Recording.stealth,
    "constant": _each(lambda recording, i, f: np.repeat(f[:1], len(f), axis=0)),
    "replay": _each(_replay),
    "permuted": _each(_permuted),
    "flipped": _each(lambda recording, i, f: f.max(axis=0) + f.min(axis=0) - f),
    "drift": _each(_drifted),
}


def check_lies(names: Sequence[str]) -> list[str]:
    """Checks names of lies; all if none is given.

    Raises:
        ConfigError: one is unknown.
    """
    for name in names:
        if name not in LIES:
            raise ConfigError(f"lie '{name}' is unknown; choose {', '.join(LIES)}")
    return list(names) or list(LIES)
