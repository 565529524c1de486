"""Synthesised features: a small network predicts what absent devices would send; then the trained fusion answers.

The network, ``[f ⊙ mask, mask] → 128 → f``, gets the features that arrived (standardised, absent ones 0) and the mask.
It learns the features of the absent devices by squared error, on augmented training features, with subsets whose number
of survivors is uniform. Features that arrived are never replaced. Students are not trained again.

References: after the "modifier module" of 15 kB in Scientific Reports 2025, whose code was not available; sizes and
training are chosen here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from nonn.distill import sample_answering
from nonn.experiment.rival import Rival, training_features
from nonn.experiment.training import Trained
from nonn.experiment.workspace import Workspace
from nonn.fusion.head import Features, FloatArray

__all__ = ["build"]

_HIDDEN, _EPOCHS, _BATCH, _LR = 128, 20, 256, 2e-3


def build(space: Workspace, trained: Trained) -> Rival:
    """Trains the network on augmented passes over the training split.

    Args:
        space: workspace of the row.
        trained: what the row has trained.

    Returns:
        The students as they are trained, and the trained fusion of completed features.
    """
    students = trained.students.network
    fusion = space.heads.fit_all(trained.teacher.network, students, ("trained",))["trained"]
    features = torch.from_numpy(training_features(space, students))
    mean, sd = features.mean(0), features.std(0) + 1e-6
    device_of = torch.repeat_interleave(torch.arange(fusion.num_devices), torch.tensor(fusion.widths))  # [D]
    x, width = ((features - mean) / sd).to(space.device), len(device_of)
    generator = torch.Generator().manual_seed(space.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(space.seed)
        network = nn.Sequential(nn.Linear(2 * width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, width)).to(x.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * -(-len(x) // _BATCH))
    for _ in range(_EPOCHS):
        for batch in torch.split(torch.randperm(len(x), generator=generator), _BATCH):
            there = sample_answering("stratified", len(batch), fusion.num_devices, 0.0, generator)[:, device_of].to(x)
            given = x[batch.to(x.device)]
            error = (network(torch.cat([given * there, there], dim=1)) - given).square() * (1 - there)
            optimizer.zero_grad()
            (error.sum() / (1 - there).sum().clamp_min(1)).backward()
            optimizer.step()
            schedule.step()
    network.cpu()

    @torch.no_grad()
    def answer(arrived: Features) -> FloatArray:
        samples, there = len(next(iter(arrived.values()))), torch.tensor([int(i) in arrived for i in device_of]).float()
        given = torch.zeros(samples, width)
        given[:, there > 0] = torch.from_numpy(np.concatenate([arrived[i] for i in sorted(arrived)], axis=1)).float()
        known = (given - mean) / sd * there
        complete = torch.where(there > 0, given, network(torch.cat([known, there.expand(samples, -1)], 1)) * sd + mean)
        return fusion.logits(dict(enumerate(np.split(complete.numpy(), fusion.offsets[1:-1], axis=1))))

    return Rival(students, answer)
