"""Known inputs: what a node must answer before requests ask it again after a quarantine.

The bundle has a few synthetic inputs, drawn in blocks so that features vary between them, and the features of every
student for them (``known.npz``). They contain no data of the experiment. A test sends some of them, in random order.
Features may differ a little between processors and runtimes: their error may be up to a quarter of the spread between
inputs. A constant has an error of 1, the features of another input 1.4.

Limits: a node that recognises the test, because it has the whole bundle, can answer it correctly and lie afterwards. It
is then found again, and its quarantine doubles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import BundleError

if TYPE_CHECKING:
    from nonn.bundle.manifest import InputSpec

__all__ = ["FILE", "KnownInputs", "draw_inputs"]

FILE = "known.npz"
COUNT, ASKED = 32, 8
TOLERANCE = 0.25

_BLOCKS = 4  # along each axis of an input
_LEAST_SPREAD = 1e-6  # a student whose features do not vary is compared with this


def draw_inputs(spec: InputSpec, seed: int, count: int = COUNT) -> NDArray[Any]:
    """Synthetic raw inputs [count, …]: blocks with the mean and standard deviation of the data in each channel."""
    channels, *sides = spec.shape
    values = np.random.default_rng([seed, 13]).normal(size=(count, channels, *(min(_BLOCKS, s) for s in sides)))
    for axis, side in enumerate(sides, start=2):
        values = np.take(values, np.arange(side) * values.shape[axis] // side, axis=axis)
    mean, std = (np.reshape(v, (1, -1, *[1] * len(sides))) for v in (spec.mean, spec.std))
    values = mean + std * values
    return values.clip(0, 255).round().astype(np.uint8) if spec.dtype == "uint8" else values.astype(np.float32)


class KnownInputs:
    """The known inputs of a bundle.

    Args:
        arrays: ``inputs`` [n, …] and ``device_<i>`` [n, d_i] of every student.
        num_devices: number of students N.

    Raises:
        BundleError: an array is missing.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], num_devices: int) -> None:
        names = [f"device_{i}" for i in range(num_devices)]
        if missing := [name for name in ("inputs", *names) if name not in arrays]:
            raise BundleError(f"{FILE}: no {', '.join(missing)}; build the bundle again")
        self._inputs = arrays["inputs"]
        self._features = [arrays[name] for name in names]

    def draw(self, rng: np.random.Generator, most: int = ASKED) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Some of them in random order, at most ``most``: their numbers [m] and the inputs [m, …]."""
        chosen = rng.permutation(len(self._inputs))[: min(ASKED, most)]
        return chosen, self._inputs[chosen]

    def error(self, device: int, chosen: NDArray[np.int64], features: NDArray[Any]) -> float:
        """Error of a node's features relative to the spread between inputs; at most ``TOLERANCE`` passes the test.

        Args:
            device: number of the student.
            chosen: numbers of the inputs [m].
            features: of the node for these inputs [m, d_i].

        Raises:
            BundleError: there is no such student.
        """
        if not 0 <= device < len(self._features):
            raise BundleError(f"{FILE}: no student {device}; it has 0 to {len(self._features) - 1}")
        known = self._features[device].astype(np.float64)
        spread = max(float(np.sqrt(known.var(axis=0).mean())), _LEAST_SPREAD)
        off = features.astype(np.float64) - known[chosen]  # of float32, so squares stay finite
        return float(np.sqrt((off**2).mean()) / spread)
