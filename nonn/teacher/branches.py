"""A teacher with a branch for each view of the input, such as each body-worn unit.

Every branch is a network of the zoo that sees one view and has a separate classifier; the teacher's logits are the mean
of those of its branches. A branch therefore also teaches the device of its view what that view alone can tell. Several
branches for each view are an ensemble.

Modality dropout leaves whole views out of the mean in training, so that branches do not rely on one another. Source:
Neverova et al. 2016, ModDrop, arXiv 1501.00102; there, inputs are set to zero and features are concatenated.

Limits: all views have the same height and width, or duration. Objectives that compare earlier layers, or that use the
classifier over all filters, need a teacher without branches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nonn.bundle.views import View, select_view, view_shape
from nonn.errors import ConfigError
from nonn.teacher.convnet import pool
from nonn.teacher.zoo import make_network

__all__ = ["Branches", "drop_views"]


class Branches(nn.Module):
    """The mean of the logits of several networks, each of which sees one view.

    Args:
        model: a name of the zoo, for every branch.
        views: the different views [U].
        copies: M, networks for each view.
        input_shape: shape of one whole sample [C, H, W] or [C, T].
        num_classes: K.

    Attributes:
        views: as given.
        copies: M.
        features: the submodule whose output is the final feature maps of all branches, view by view [B, ΣC_i, …].

    Raises:
        ConfigError: the model is not in the zoo, or the views differ in height and width.
    """

    def __init__(
        self, model: str, views: Sequence[View], copies: int, input_shape: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        shapes = [view_shape(input_shape, view) for view in views]
        if len({shape[1:] for shape in shapes}) > 1:
            sizes = " and ".join(dict.fromkeys("×".join(map(str, shape[1:])) for shape in shapes))
            raise ConfigError(f"teacher.branches: views must have one size, not {sizes}; set teacher.branches = 0")
        repeated = [view for view in views for _ in range(copies)]
        self.features = _Features(model, repeated, input_shape)
        self.views, self.copies = tuple(views), copies
        classifiers = [nn.Linear(width, num_classes) for width in self.features.widths]
        for classifier in classifiers:
            nn.init.zeros_(classifier.bias)
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of whole normalised inputs [B, C, …]."""
        return self.branch_logits(self.features(x)).mean(dim=1)

    def branch_logits(self, maps: Tensor) -> Tensor:
        """Logits of every branch, view by view [B, U · M, K], float32.

        Args:
            maps: output of ``features`` [B, ΣC_i, …], or its spatial mean [B, ΣC_i].
        """
        pieces = torch.split(pool(maps), self.features.widths, dim=1)
        logits = [classifier(piece).float() for classifier, piece in zip(self.classifiers, pieces, strict=True)]
        return torch.stack(logits, dim=1)

    def view_logits(self, maps: Tensor) -> Tensor:
        """Logits for each view, the mean of its branches [B, U, K]; ``branch_logits`` describes the maps."""
        logits = self.branch_logits(maps)
        return logits.view(len(logits), len(self.views), self.copies, -1).mean(dim=2)


class _Features(nn.Module):
    """The final feature maps of all branches, concatenated along their channels."""

    def __init__(self, model: str, views: Sequence[View], input_shape: Sequence[int]) -> None:
        super().__init__()
        self.views, dims = tuple(views), len(input_shape) - 1
        networks = [make_network(model, view_shape(input_shape, view)[0], 0, dims) for view in views]
        self.networks, self.widths = nn.ModuleList(networks), [network.out_channels for network in networks]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised inputs [B, C, …] → [B, ΣC_i, …]."""
        pairs = zip(self.networks, self.views, strict=True)
        return torch.cat([network(select_view(x, view)) for network, view in pairs], dim=1)


def drop_views(batch: int, num_views: int, p: float, generator: torch.Generator) -> Tensor:
    """The views that stay for each sample of a batch, at least one; bool [B, U], on the CPU.

    Args:
        batch: B.
        num_views: U.
        p: probability that a view is dropped.
        generator: on the CPU.
    """
    order = torch.rand(batch, num_views, generator=generator)
    kept = torch.rand(batch, num_views, generator=generator) >= p
    return kept | (~kept.any(dim=1, keepdim=True) & (order == order.amin(dim=1, keepdim=True)))
