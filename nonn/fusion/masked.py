"""One small network for all subsets of devices, conditioned on the mask of those that answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.fusion.head import FloatArray, Head
from nonn.reliability.subsets import members

__all__ = ["MaskedHead", "group_shares"]

_NAMES = (
    "groups",
    "mean",
    "scale",
    "weight",
    "readout",
    "first",
    "first_bias",
    "second",
    "second_bias",
    "film",
    "film_bias",
)


def group_shares(groups: NDArray[np.int64], answered: NDArray[Any]) -> FloatArray:
    """One over the number of devices of each device's group that answered.

    Args:
        groups: group of each device [N].
        answered: whether each device answered [..., N].

    Returns:
        [..., N]; 0 where no device of the group answered.
    """
    same = (groups[:, None] == groups).astype(np.int64)  # a product of booleans would not count
    present = answered @ same
    return np.where(present > 0, 1.0 / np.maximum(present, 1), 0.0)


class MaskedHead(Head):
    """One network for all subsets: standardised features, zeros for absent devices, and the mask are its inputs.

    ``v = Σ_{i∈S} a_i x_i W_i`` with standardised features x, H entries for hidden units and K for logits.
    Devices of one group are averaged: ``a_i`` is one over the number of those of its group that answered.
    A small network of the mask m, with two hidden layers, gives a scale γ(m) and a shift β(m) of each entry
    (feature-wise linear modulation); with ``u = γ(m) ⊙ v + β(m)`` the logits are ``u[H:] + relu(u[:H]) B``.

    Nothing is solved on demand. The size does not depend on the number of subsets: D (H + K) weights of 2 bytes and
    some for the mask. A head computes with the stored precision, so it gives the same logits before storage and after.

    Args:
        arrays: ``groups``, the group of each device [N]; ``mean`` and ``scale`` of the features [D], ``weight``
            [D, H + K], ``readout`` B [H, K], and the network of the mask: ``first`` [N, M], ``second`` [M, M], ``film``
            [M, 2 (H + K)], each with its ``…_bias``.
        widths: d_i of each device [N].

    Raises:
        ShapeError: the arrays do not fit each other, or one is not finite.

    Source: Perez et al. 2018, "FiLM", arXiv 1709.07871, for the modulation.
    """

    kind = "masked"

    def __init__(self, arrays: Mapping[str, NDArray[Any]], widths: Sequence[int]) -> None:
        self._stored = {name: np.asarray(arrays[name]) for name in _NAMES}
        hidden, num_classes = self._stored["readout"].shape
        super().__init__(widths, num_classes)
        inputs, both, inner = int(self.offsets[-1]), hidden + num_classes, self._stored["second"].shape[0]
        shapes: dict[str, tuple[int, ...]] = {
            "groups": (len(widths),),
            "mean": (inputs,),
            "scale": (inputs,),
            "weight": (inputs, both),
            "readout": (hidden, num_classes),
        }
        shapes |= {"first": (len(widths), inner), "second": (inner, inner), "film": (inner, 2 * both)}
        shapes |= {"first_bias": (inner,), "second_bias": (inner,), "film_bias": (2 * both,)}
        for name, shape in shapes.items():
            if self._stored[name].shape != shape or not np.isfinite(self._stored[name]).all():
                found = list(self._stored[name].shape)
                raise ShapeError(f"masked head: {name} {found}, expected finite {list(shape)} for widths {self.widths}")
        self.num_hidden = hidden
        self._groups = self._stored["groups"].astype(np.int64)
        self._values = {name: array.astype(np.float64) for name, array in self._stored.items()}

    def term(self, device: int, features: NDArray[Any]) -> FloatArray:
        """The summand of one device.

        Args:
            device: its number i.
            features: its features [B, d_i].

        Returns:
            ``x_i W_i`` [B, H + K].
        """
        rows, values = slice(self.offsets[device], self.offsets[device + 1]), self._values
        standardised = (features.astype(np.float64) - values["mean"][rows]) * values["scale"][rows]
        result: FloatArray = standardised @ values["weight"][rows]
        return result

    def from_terms(self, mask: int, terms: Sequence[FloatArray]) -> FloatArray:
        """Logits [B, K] of a subset from the terms of its devices, in order [B, H + K]."""
        values, devices = self._values, members(mask)
        answered = mask >> np.arange(self.num_devices) & 1
        shares = group_shares(self._groups, answered)
        total = shares[devices[0]] * terms[0]
        for device, term in zip(devices[1:], terms[1:], strict=True):
            total += shares[device] * term
        inner = (2.0 * answered - 1) @ values["first"] + values["first_bias"]
        inner = np.maximum(inner, 0) @ values["second"] + values["second_bias"]
        film = np.maximum(inner, 0) @ values["film"] + values["film_bias"]
        scale, shift = np.split(film, 2)
        modulated = total * scale + shift
        hidden, direct = np.split(modulated, [self.num_hidden], axis=1)
        result: FloatArray = direct + np.maximum(hidden, 0) @ values["readout"]
        return result

    def _fuse(self, mask: int, arrived: Sequence[NDArray[Any]], keep: bool) -> FloatArray:
        terms = [self.term(device, features) for device, features in zip(members(mask), arrived, strict=True)]
        return self.from_terms(mask, terms)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return dict(self._stored)

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> MaskedHead:
        return cls(arrays, arrays["widths"].tolist())
