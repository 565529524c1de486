"""Failout: whole devices dropped in training, so that students learn to do without each other.

Source: Yousefpour et al. 2020, ResiliNet, arXiv 2002.07386.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nonn.errors import ConfigError

__all__ = ["sample_answering"]


def sample_answering(law: str, batch: int, num_devices: int, p: float, generator: torch.Generator) -> Tensor:
    """Draws an answering set for every sample of a batch; no set is empty.

    Args:
        law: ``none`` (all answer), ``independent`` (each device is dropped with probability p) or ``stratified``
            (the number of survivors is uniform over 1 … N, then which ones: every row of the report weighs the same).
        batch: B.
        num_devices: N.
        p: probability that a device is dropped, for ``independent``.
        generator: on the CPU.

    Returns:
        bool [B, N], true where the device answers.

    Raises:
        ConfigError: the law is unknown.
    """
    if law == "none":
        return torch.ones(batch, num_devices, dtype=torch.bool)
    # A random order of the devices for each sample; the first ones of it survive.
    rank = torch.rand(batch, num_devices, generator=generator).argsort(dim=1).argsort(dim=1)
    if law == "stratified":
        survivors = torch.randint(1, num_devices + 1, (batch, 1), generator=generator)
        return rank < survivors
    if law == "independent":
        kept = torch.rand(batch, num_devices, generator=generator) >= p
        return kept | (~kept.any(dim=1, keepdim=True) & (rank == 0))
    raise ConfigError(f"distill.failout = '{law}': unknown; choose none, independent or stratified")
