"""Heads with trained layers, which differ in what an absent device contributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ShapeError
from nonn.fusion.head import FloatArray
from nonn.fusion.linear import LinearHead
from nonn.reliability.subsets import members

__all__ = ["TRAINED", "LogitAverage", "MeanFill", "ReplicaAverage", "Rescale", "ZeroFill"]


class ZeroFill(LinearHead):
    """One fully connected layer over all devices' features; an absent device contributes zeros.

    Args:
        weight: [D, K], rows in device order.
        bias: [K].
        widths: d_i of each device [N].

    Source: Bhardwaj et al. 2019, arXiv 1907.11804.
    """

    kind = "zero-fill"

    def __init__(self, weight: NDArray[Any], bias: NDArray[Any], widths: Sequence[int]) -> None:
        super().__init__(widths, weight.shape[1])
        self.weight, self.bias = weight.astype(np.float64), bias.astype(np.float64)
        if len(weight) != self.offsets[-1]:
            raise ShapeError(f"weight of {len(weight)} rows for widths {self.widths}, which sum to {self.offsets[-1]}")

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        return self.weight[self.rows(mask)], self.bias

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ZeroFill:
        return cls(arrays["weight"], arrays["bias"], arrays["widths"].tolist())


class Rescale(ZeroFill):
    """Zero-fill whose additive part is scaled by N/|S|, so that it keeps its size: ``z_S = b + N/|S| Σ f_i W_i``.

    Source: the scaling of dropout (Srivastava et al. 2014), for whole devices.
    """

    kind = "rescale"

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        return self.weight[self.rows(mask)] * (self.num_devices / max(len(members(mask)), 1)), self.bias


class LogitAverage(LinearHead):
    """Averages the classifiers of the devices that answered: ``z_S = 1/|S| Σ (b_i + f_i W_i)``.

    Args:
        weight: [D, K], rows in device order.
        biases: bias of each device [N, K].
        widths: d_i of each device [N].

    Raises:
        ShapeError: the arrays do not fit each other.
    """

    kind = "logit-average"

    def __init__(self, weight: NDArray[Any], biases: NDArray[Any], widths: Sequence[int]) -> None:
        super().__init__(widths, weight.shape[1])
        self.weight, self.biases = weight.astype(np.float64), biases.astype(np.float64)
        if len(weight) != self.offsets[-1] or biases.shape != (self.num_devices, self.num_classes):
            raise ShapeError(
                f"weight {list(weight.shape)} and biases {list(biases.shape)} do not fit {self.num_devices} devices "
                f"of widths {self.widths}"
            )

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        arrived = members(mask)
        count = max(len(arrived), 1)
        return self.weight[self.rows(mask)] / count, self.biases[list(arrived)].sum(axis=0) / count

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"weight": self.weight, "biases": self.biases}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LogitAverage:
        return cls(arrays["weight"], arrays["biases"], arrays["widths"].tolist())


class MeanFill(ZeroFill):
    """One fully connected layer; an absent device contributes the mean of its features.

    Args:
        weight: [D, K], rows in device order.
        bias: [K].
        widths: d_i of each device [N].
        mean: mean of each feature over the training split [D].

    Raises:
        ShapeError: the arrays do not fit each other.
    """

    kind = "mean-fill"

    def __init__(self, weight: NDArray[Any], bias: NDArray[Any], widths: Sequence[int], mean: NDArray[Any]) -> None:
        super().__init__(weight, bias, widths)
        self.mean = mean.astype(np.float64)
        if self.mean.shape != (len(weight),):
            raise ShapeError(f"mean of shape {list(mean.shape)} for a weight of {len(weight)} rows")

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        absent = np.ones(len(self.weight), dtype=bool)
        absent[self.rows(mask)] = False
        return self.weight[~absent], self.bias + self.mean[absent] @ self.weight[absent]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return super()._arrays() | {"mean": self.mean}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> MeanFill:
        return cls(arrays["weight"], arrays["bias"], arrays["widths"].tolist(), arrays["mean"])


class ReplicaAverage(LinearHead):
    """Averages the answers of the devices that learned the same part, then applies one fully connected layer.

    A part without an answer contributes zeros.

    Args:
        weight: [Σ_j width of part j, K], rows in part order.
        bias: [K].
        widths: d_i of each device [N]; equal for devices of one part.
        parts: part of each device [N]; parts are 0 … M − 1.

    Source: Jeong, Park, Yang 2021, Electronics 10(14), 1614.
    """

    kind = "replica-average"

    def __init__(self, weight: NDArray[Any], bias: NDArray[Any], widths: Sequence[int], parts: Sequence[int]) -> None:
        super().__init__(widths, weight.shape[1])
        self.weight, self.bias = weight.astype(np.float64), bias.astype(np.float64)
        self.parts = tuple(int(p) for p in parts)
        part_width: dict[int, int] = {}
        for i, (part, width) in enumerate(zip(self.parts, self.widths, strict=True)):
            if part_width.setdefault(part, width) != width:
                raise ShapeError(f"device {i}: width {width}, but part {part} has width {part_width[part]}")
        if sorted(part_width) != list(range(len(part_width))) or sum(part_width.values()) != len(weight):
            raise ShapeError(f"weight of {len(weight)} rows does not fit parts of widths {part_width}")
        ends = np.cumsum([part_width[j] for j in range(len(part_width))])
        self._blocks = [slice(end - part_width[j], end) for j, end in enumerate(ends)]

    def _solve(self, mask: int) -> tuple[FloatArray, FloatArray]:
        arrived = members(mask)
        replicas = {j: sum(self.parts[i] == j for i in arrived) for j in set(self.parts)}
        blocks = [self.weight[self._blocks[self.parts[i]]] / replicas[self.parts[i]] for i in arrived]
        empty = np.empty((0, self.num_classes))
        return np.concatenate(blocks) if blocks else empty, self.bias

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"weight": self.weight, "bias": self.bias, "parts": np.array(self.parts)}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ReplicaAverage:
        return cls(arrays["weight"], arrays["bias"], arrays["widths"].tolist(), arrays["parts"].tolist())


# The fusions that students may be trained through (``fusion.train``), by kind.
TRAINED: Mapping[str, type[LinearHead]] = {
    head.kind: head for head in (ZeroFill, Rescale, ReplicaAverage, LogitAverage)
}
