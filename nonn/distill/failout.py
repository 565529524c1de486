"""Failout: drops whole devices in training, so that students learn to work without each other.

=============== ========================================================================================
``none``        all devices answer
``independent`` each device is dropped with probability ``p``
``stratified``  the number of survivors is uniform over 1 … N, then the subset: every row of the report,
                one for each number of failures, has the same weight
``groups``      each group of devices (for example on one power strip) is dropped as a whole with
                probability ``p_group``; each device is also dropped by itself with ``p``
=============== ========================================================================================

An empty set is replaced by one device, each with the same probability: without an answer nothing is trained.

Source: Yousefpour et al. 2020, ResiliNet, arXiv 2002.07386.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nonn.config import DistillConfig
from nonn.errors import ConfigError
from nonn.toml import choices, did_you_mean

__all__ = ["LAWS", "sample_answering"]

LAWS = choices(DistillConfig, "failout")


def sample_answering(
    law: str,
    batch: int,
    num_devices: int,
    p: float,
    generator: torch.Generator,
    *,
    groups: Sequence[Sequence[int]] = (),
    p_group: float = 0.0,
) -> Tensor:
    """Draws a subset of answering devices for every sample of a batch; no subset is empty.

    Args:
        law: one of ``LAWS``.
        batch: number of samples B.
        num_devices: number of devices N.
        p: probability that a device is dropped by itself, for ``independent`` and ``groups``.
        generator: random generator on the CPU.
        groups: devices that fail together, for ``groups``; a device in none of them only fails by itself.
        p_group: probability that a group is dropped.

    Returns:
        bool [B, N], true where the device answers.

    Raises:
        ConfigError: the law is unknown, or a group names a device that does not exist.
    """
    if law == "none":
        return torch.ones(batch, num_devices, dtype=torch.bool)
    if law not in LAWS:
        raise ConfigError(f"distill.failout = '{law}': unknown; {did_you_mean(law, LAWS)}")
    # A random order of the devices for each sample; the first ones survive.
    rank = torch.rand(batch, num_devices, generator=generator).argsort(dim=1).argsort(dim=1)
    if law == "stratified":
        survivors = torch.randint(1, num_devices + 1, (batch, 1), generator=generator)
        return rank < survivors
    kept = torch.rand(batch, num_devices, generator=generator) >= p
    if law == "groups":
        up = torch.rand(batch, len(groups), generator=generator) >= p_group
        for number, group in enumerate(groups):
            if not all(0 <= device < num_devices for device in group):
                raise ConfigError(f"distill.failout_groups: {list(group)} names a device not among {num_devices}")
            kept[:, list(group)] &= up[:, number : number + 1]
    return kept | (~kept.any(dim=1, keepdim=True) & (rank == 0))
