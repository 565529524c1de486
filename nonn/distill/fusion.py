"""The torch version of ``nonn.fusion``, through which students are trained.

One fully connected layer over the features that arrived, with a separate subset of devices for every sample. Its
weights become a ``ZeroFill``, ``Rescale``, ``ReplicaAverage`` or ``LogitAverage`` head, which gives the same logits
(tested).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nonn.errors import ShapeError
from nonn.fusion import Head, LogitAverage, ReplicaAverage, Rescale, ZeroFill
from nonn.fusion.trained import TRAINED

__all__ = ["FusionLayer"]


class FusionLayer(nn.Module):
    """Zero-fill, rescale or replica-average fusion with a linear layer.

    Zero-fill and rescale are sums of the contributions of devices, ``z_S = b + s Σ f_i W_i`` with s = 1 or N/|S|.
    Logit-average has a bias for each device: N independent classifiers.

    Args:
        kind: one of ``nonn.fusion.trained.TRAINED``.
        widths: feature width d_i of each device [N].
        parts: part of each device [N], or any number that differs between devices that learn different filters; only
            replica-average uses it.
        num_classes: number of classes K.

    Raises:
        ShapeError: the kind is not one of these.
    """

    membership: Tensor

    def __init__(self, kind: str, widths: Sequence[int], parts: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if kind not in TRAINED:
            raise ShapeError(f"fusion '{kind}' cannot be trained through; choose one of: {', '.join(TRAINED)}")
        self.kind, self.widths, self.parts = kind, tuple(widths), tuple(parts)
        num_parts = max(parts) + 1
        self.groups = [[i for i, p in enumerate(parts) if p == j] for j in range(num_parts)]
        average = kind == ReplicaAverage.kind
        inputs = sum(widths[group[0]] for group in self.groups) if average else sum(widths)
        self.linear = nn.Linear(inputs, num_classes, bias=kind != LogitAverage.kind)
        self.biases: nn.Parameter | None = None
        if kind == LogitAverage.kind:
            self.biases = nn.Parameter(torch.zeros(len(widths), num_classes))
        else:
            nn.init.zeros_(self.linear.bias)

    def forward(self, features: Sequence[Tensor], answered: Tensor) -> Tensor:
        """Fused logits.

        Args:
            features: N tensors [B, d_i].
            answered: bool [B, N], true where the device answered.

        Returns:
            [B, K].
        """
        weight = answered.to(features[0].dtype)
        if self.kind == LogitAverage.kind:
            weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(1)
        if self.kind == Rescale.kind:
            weight = weight * (len(features) / weight.sum(dim=1, keepdim=True).clamp_min(1))
        arrived = [f * weight[:, i : i + 1] for i, f in enumerate(features)]
        if self.kind == ReplicaAverage.kind:
            # Columns one by one: an index list would be copied to the device, which a CUDA graph cannot record.
            shares = [torch.stack([weight[:, i] for i in group], dim=1).sum(1, keepdim=True) for group in self.groups]
            arrived = [
                torch.stack([arrived[i] for i in group]).sum(0) / share.clamp_min(1)
                for group, share in zip(self.groups, shares, strict=True)
            ]
        logits: Tensor = self.linear(torch.cat(arrived, dim=1))
        return logits if self.biases is None else logits + weight @ self.biases

    def head(self) -> Head:
        """The NumPy head with these weights."""
        weight = self.linear.weight.detach().cpu().float().numpy().T
        if self.biases is not None:
            return LogitAverage(weight, self.biases.detach().cpu().float().numpy(), self.widths)
        bias = self.linear.bias.detach().cpu().float().numpy()
        if self.kind == ReplicaAverage.kind:
            return ReplicaAverage(weight, bias, self.widths, self.parts)
        return (Rescale if self.kind == Rescale.kind else ZeroFill)(weight, bias, self.widths)
