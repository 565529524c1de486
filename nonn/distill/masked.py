"""Trains the masked head: one network for all subsets of devices, on stored features.

Every sample of a batch gets a subset whose size is uniform over 1 … N, so that few survivors count as much as many. The
loss is ``0.1 CE + 0.9 τ² KL`` to the teacher's logits with τ = 2, or the cross-entropy alone where heads are fitted to
labels. The network starts as the trained fusion, with its groups of interchangeable devices; the features of absent
devices are replaced by their mean.

Features of a device are decorrelated first (a ridge keeps directions of small variance small), so that the optimiser
needs fewer steps. The map is folded into the weights, so the served head does not have it.

Source: AdamW with a one-cycle schedule as in PyTorch; FiLM as in ``nonn.fusion.masked``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nonn.fusion import LinearHead, LogitAverage, MaskedHead, ReplicaAverage, Rescale
from nonn.fusion.masked import group_shares
from nonn.reliability.subsets import membership

__all__ = ["MaskedNetwork", "fit_masked"]

_BATCH = 512
_SETS = 64  # subsets in a batch: samples that share one share the network of the mask
_INNER = 128  # hidden units of the network of the mask
_RATE, _DECAY = 1e-3, 1e-2
_TEMPERATURE, _KD = 2.0, 0.9
_SHRINK = 0.01  # of the mean variance, added to each direction's
_LARGEST = 6e4  # float16 ends at 65,504


class MaskedNetwork(nn.Module):
    """The torch version of ``nonn.fusion.MaskedHead``, on decorrelated features.

    Args:
        num_devices: N.
        inputs: number of features D.
        hidden: hidden units H.
        num_classes: K.
    """

    def __init__(self, num_devices: int, inputs: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight = nn.Parameter(torch.randn(inputs, hidden + num_classes) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(hidden + num_classes))
        self.readout = nn.Parameter(torch.zeros(hidden, num_classes))
        self.first, self.second = nn.Linear(num_devices, _INNER), nn.Linear(_INNER, _INNER)
        self.film = nn.Linear(_INNER, 2 * (hidden + num_classes))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, features: Tensor, answered: Tensor, which: Tensor) -> Tensor:
        """Fused logits.

        Args:
            features: features, multiplied by their device's share of the group, 0 for absent devices [B, D].
            answered: whether each device answered, for each subset of the batch [s, N].
            which: number of each sample's subset [B].

        Returns:
            [B, K].
        """
        inner = self.second(self.first(2 * answered - 1).relu()).relu()
        scale, shift = self.film(inner)[which].chunk(2, dim=1)
        modulated = (features @ self.weight) * (1 + scale) + shift + self.bias
        hidden, direct = modulated[:, : self.hidden], modulated[:, self.hidden :]
        logits: Tensor = direct + hidden.relu() @ self.readout
        return logits


def fit_masked(
    trained: LinearHead,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    teacher: NDArray[np.float32] | None,
    *,
    hidden: int,
    updates: int,
    seed: int = 0,
    device: str = "cpu",
) -> MaskedHead:
    """Trains a masked head.

    Args:
        trained: the fusion through which the students were trained.
        features: concatenated features of all devices [n, D].
        labels: [n].
        teacher: the teacher's logits [n, K]; None trains on the labels alone.
        hidden: hidden units H.
        updates: optimiser steps.
        seed: of weights, batches and subsets.
        device: torch device name.
    """
    num_devices, num_classes = trained.num_devices, trained.num_classes
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std = np.maximum(std, 1e-3 * max(float(std.max(initial=0.0)), 1e-12))  # a dead feature stays small
    standardised = ((features - mean) / std).astype(np.float32)
    rows = [slice(a, b) for a, b in zip(trained.offsets[:-1], trained.offsets[1:], strict=True)]
    maps = [_decorrelation(standardised[:, own]) for own in rows]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MaskedNetwork(num_devices, features.shape[1], hidden, num_classes)
    weight, bias = trained.weights((1 << num_devices) - 1)
    # The layer is a sum over devices: in an average, each counts as many times as its group has devices.
    groups = _groups(trained)
    times = np.repeat(np.bincount(groups)[groups], trained.widths)[:, None]
    direct = [np.linalg.solve(m, std[own, None] * (times * weight)[own]) for m, own in zip(maps, rows, strict=True)]
    with torch.no_grad():
        network.weight[:, :hidden] *= torch.from_numpy(times**0.5).float()
        network.weight[:, hidden:] = torch.from_numpy(np.concatenate(direct)).float()
        network.bias[hidden:] = torch.from_numpy(bias + mean @ weight).float()
    for own, decorrelation in zip(rows, maps, strict=True):
        standardised[:, own] = standardised[:, own] @ decorrelation.astype(np.float32)
    _train(network.to(device), trained.widths, groups, standardised, labels, teacher, updates, seed)
    state = {name: value.detach().cpu().double().numpy() for name, value in network.state_dict().items()}
    folded = [m @ state["weight"][own] for m, own in zip(maps, rows, strict=True)]
    ones = np.concatenate([np.ones(hidden + num_classes), state["bias"]])  # 1 + γ, and the shift of all subsets
    arrays = {
        "weight": np.concatenate(folded),
        "readout": state["readout"],
        **{name: state[f"{name}.weight"].T for name in ("first", "second", "film")},
        **{f"{name}_bias": state[f"{name}.bias"] for name in ("first", "second")},
    }
    packed: dict[str, NDArray[Any]] = {
        name: array.clip(-_LARGEST, _LARGEST).astype(np.float16) for name, array in arrays.items()
    }
    packed |= {"film_bias": (state["film.bias"] + ones).astype(np.float32)}
    packed |= {"groups": groups, "mean": mean.astype(np.float32), "scale": (1 / std).astype(np.float32)}
    return MaskedHead(packed, trained.widths)


def _train(
    network: MaskedNetwork,
    widths: Sequence[int],
    groups: NDArray[np.int64],
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    teacher: NDArray[np.float32] | None,
    updates: int,
    seed: int,
) -> None:
    """Minimises the loss over batches of samples and subsets."""
    device, num_devices = network.weight.device, len(widths)
    inputs, targets = torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device)
    soft = None
    if teacher is not None:
        soft = functional.log_softmax(torch.from_numpy(teacher).to(device).float() / _TEMPERATURE, dim=1)
    owner = torch.from_numpy(np.repeat(np.arange(num_devices), widths)).to(device)
    answered = membership(num_devices)
    table = torch.from_numpy(answered).to(device).float()
    shares = torch.from_numpy(group_shares(groups, answered) * answered).to(device).float()
    sizes = [np.flatnonzero(answered.sum(axis=1) == count) for count in range(num_devices + 1)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(updates, 2), pct_start=0.1)
    rng = np.random.default_rng([seed, 13])
    order, at, batch = rng.permutation(len(labels)), 0, min(_BATCH, len(labels))
    for _ in range(updates):
        if at + batch > len(order):
            order, at = rng.permutation(len(labels)), 0
        chosen = torch.from_numpy(order[at : at + batch]).to(device)
        at += batch
        masks = np.array([rng.choice(sizes[count]) for count in rng.integers(1, num_devices + 1, _SETS)])
        drawn = torch.from_numpy(masks).to(device)
        which = torch.arange(batch, device=device) % _SETS
        logits = network(inputs[chosen] * shares[drawn][which][:, owner], table[drawn], which)
        loss = functional.cross_entropy(logits, targets[chosen])
        if soft is not None:
            own = functional.log_softmax(logits / _TEMPERATURE, dim=1)
            kd = functional.kl_div(own, soft[chosen], reduction="batchmean", log_target=True)
            loss = (1 - _KD) * loss + _KD * _TEMPERATURE**2 * kd
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _groups(trained: LinearHead) -> NDArray[np.int64]:
    """Group of each device [N]: in the trained fusion its devices are averaged."""
    if isinstance(trained, ReplicaAverage):
        return np.array(trained.parts)
    if isinstance(trained, Rescale | LogitAverage):
        return np.zeros(trained.num_devices, dtype=np.int64)
    return np.arange(trained.num_devices)


def _decorrelation(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """A map [d, d] of standardised features [n, d] to about uncorrelated ones of unit variance."""
    covariance = features.T.astype(np.float64) @ features / len(features)
    values, vectors = np.linalg.eigh(covariance)
    floor = _SHRINK * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    result: NDArray[np.float64] = vectors / np.sqrt(np.maximum(values, 0) + floor)
    return result
