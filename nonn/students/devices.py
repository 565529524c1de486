"""Unequal devices: the limits of each, and the number of filters of its student.

A part's share of the teacher's filters follows the capacity of the students that learn it: the square root of their
parameters, as width grows at a fixed depth (a linear bridge gives no more independent filters than the student is
wide). ``nonn.students.sizing`` sizes students to their device; this module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nonn.config.devices import BudgetConfig, DevicesConfig
from nonn.reliability.placement import Speed
from nonn.reliability.subsets import independent_law

__all__ = ["Device", "apportion_filters", "failure_law", "resolve_devices"]


@dataclass(frozen=True)
class Device(Speed):
    """One device.

    Attributes:
        number: i.
        title: its number, and the name of its class if it has one, for messages.
        budget: limits of its student.
        p_fail: probability that it does not answer.
        answer_s: time that an answer may take; 0 is no limit.
        model: of its student; empty is ``student.model``.
    """

    number: int
    title: str
    budget: BudgetConfig
    p_fail: float = 0.0
    answer_s: float = 0.0
    model: str = ""


def resolve_devices(config: DevicesConfig) -> tuple[Device, ...]:
    """Every device with its limits [N], class by class."""
    if not config.classes:
        return tuple(Device(i, str(i), config.budget, p_fail=config.p_fail) for i in range(config.count))
    kinds = [kind for kind in config.classes for _ in range(kind.count)]
    return tuple(
        Device(
            number=i,
            title=f"{i} ('{kind.name}')",
            budget=BudgetConfig(params=kind.params, macs=kind.macs, peak_bytes=kind.ram_bytes),
            macs_per_s=kind.macs_per_s or math.inf,
            link_bytes_per_s=kind.link_bytes_per_s or math.inf,
            link_latency_s=kind.link_latency_s,
            joule_per_mac=kind.joule_per_mac,
            joule_per_byte=kind.joule_per_byte,
            p_fail=kind.p_fail,
            answer_s=config.answer_s,
            model=kind.model,
        )
        for i, kind in enumerate(kinds)
    )


def failure_law(config: DevicesConfig) -> str:
    """The law that every device fails independently with its own ``p_fail``, as ``nonn-sim`` reads it."""
    return independent_law([device.p_fail for device in resolve_devices(config)])


def apportion_filters(num_filters: int, params: Sequence[float]) -> tuple[int, ...]:
    """Number of filters of each part, in proportion to the root of its students' parameters, at least one each.

    Args:
        num_filters: C, at least M.
        params: mean parameters of the students that learn each part [M]; positive.

    Returns:
        Sizes [M] with sum C; whole filters go to the largest remainders, the first part first among equals.
    """
    capacity = np.sqrt(np.asarray(params, dtype=float))
    # One filter each first, so that no part is empty; the rest is divided by what each part lacks of its fair share.
    wanted = np.maximum(num_filters * capacity / capacity.sum() - 1, 0)
    spare = num_filters - len(capacity)
    quota = spare * wanted / wanted.sum() if wanted.sum() else np.full(len(capacity), spare / len(capacity))
    sizes = np.floor(quota + 1e-9).astype(int)
    for part in np.argsort(sizes - quota, kind="stable")[: spare - int(sizes.sum())]:
        sizes[part] += 1
    return tuple(int(size) + 1 for size in sizes)
