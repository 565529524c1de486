"""Uneven devices: what each of them takes, how many filters its student deserves, and who runs what.

A part's share of the teacher's filters follows the capacity of the students that learn it: the root of their
parameters, which is what width grows as at a fixed depth (a linear bridge gives no more independent filters than the
student is wide). Students are sized to their device in ``nonn.students.sizing``; here is what needs no torch.

Once the accuracy of every answering set is known, students are placed on the machines: the most accurate placement,
or with an accuracy goal the fastest one that reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nonn.bundle import Bundle
from nonn.config.devices import BudgetConfig, DevicesConfig
from nonn.errors import ConfigError, GuaranteeError
from nonn.reliability.subsets import independent_law

__all__ = ["Device", "Seat", "Speed", "place_students", "resolve_devices", "share_out"]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a device answers; what is not known takes no time.

    Attributes:
        macs_per_s: multiply-accumulates per second that it really reaches.
        link_bytes_per_s: of the features it sends.
        link_latency_s: there and back.
    """

    macs_per_s: float = math.inf
    link_bytes_per_s: float = math.inf
    link_latency_s: float = 0.0

    def latency_s(self, macs: int, feature_bytes: int) -> float:
        """Time from the request until the features are back."""
        return macs / self.macs_per_s + feature_bytes / self.link_bytes_per_s + self.link_latency_s


@dataclass(frozen=True)
class Device(Speed):
    """One device.

    Attributes:
        number: i.
        title: for messages: its number, and the name of its class where it has one.
        budget: limits of its student.
        p_fail: probability that it is away.
        answer_s: time that an answer may take; 0 is no limit.
    """

    number: int
    title: str
    budget: BudgetConfig
    p_fail: float = 0.0
    answer_s: float = 0.0


@dataclass(frozen=True)
class Seat:
    """A machine and the student it should run.

    Attributes:
        machine: number of the device.
        title: of the device.
        student: number of the student; None where the machine is better left out.
        latency_s: of its answer.
    """

    machine: int
    title: str
    student: int | None
    latency_s: float


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
            p_fail=kind.p_fail,
            answer_s=config.answer_s,
        )
        for i, kind in enumerate(kinds)
    )


def failure_law(config: DevicesConfig) -> str:
    """The law that every device fails independently with its own ``p_fail``, as ``nonn-sim`` reads it."""
    return independent_law([device.p_fail for device in resolve_devices(config)])


def share_out(num_filters: int, params: Sequence[float]) -> tuple[int, ...]:
    """Filters of each part, in proportion to the root of the parameters behind it, at least one each.

    Args:
        num_filters: C, at least M.
        params: of the students that learn each part, their mean [M]; positive.

    Returns:
        Sizes [M] with sum C; whole filters go to the largest remainders, the first part first among equals.
    """
    capacity = np.sqrt(np.asarray(params, dtype=float))
    # One filter each first, so that no part is empty; the rest is divided by what a part's fair share lacks.
    wanted = np.maximum(num_filters * capacity / capacity.sum() - 1, 0)
    spare = num_filters - len(capacity)
    quota = spare * wanted / wanted.sum() if wanted.sum() else np.full(len(capacity), spare / len(capacity))
    sizes = np.floor(quota + 1e-9).astype(int)
    for part in np.argsort(sizes - quota, kind="stable")[: spare - int(sizes.sum())]:
        sizes[part] += 1
    return tuple(int(size) + 1 for size in sizes)


def place_students(bundle: Bundle, config: DevicesConfig) -> list[Seat]:
    """Which machine should run which student, now that the accuracy of every answering set is known.

    Args:
        bundle: with one student a device.
        config: classes; with a ``goal`` the fastest placement that reaches it is chosen, else the most accurate one.

    Raises:
        ConfigError: no student fits any machine.
        GuaranteeError: no placement reaches the goal within ``answer_s``; the message says what can be reached.
    """
    from nonn_sim.placement_file import works_of

    from nonn.reliability.placement import (
        Device as Machine,  # the simulator's search; it needs scipy, which training has
    )
    from nonn.reliability.placement import place

    devices = resolve_devices(config)
    machines = [
        Machine(
            name=device.title,
            p_fail=device.p_fail,
            macs_per_s=device.macs_per_s,
            memory_bytes=device.budget.peak_bytes or math.inf,
            link_bytes_per_s=device.link_bytes_per_s,
            link_latency_s=device.link_latency_s,
        )
        for device in devices
    ]
    works = works_of(bundle)
    limit = config.answer_s or math.inf
    best = place(bundle.table, works, machines, latency_limit_s=limit)
    if best.expected < config.goal:
        raise GuaranteeError(
            f"devices.goal = {config.goal:g}: the best placement on these devices has an expected accuracy of "
            f"{best.expected:.4f}; lower the goal, raise devices.answer_s, or take more reliable devices"
        )
    if config.goal:
        # More time is more choices: the best expected accuracy grows with the limit, so bisection finds the least.
        times = sorted({t for w in works for m in machines if (t := w.latency_s(m)) <= limit})
        low, high = 0, len(times) - 1
        while low < high:
            middle = (low + high) // 2
            try:
                reached = place(bundle.table, works, machines, latency_limit_s=times[middle])
            except ConfigError:  # nothing fits in so little time
                low = middle + 1
                continue
            if reached.expected >= config.goal:
                best, high = reached, middle
            else:
                low = middle + 1
        if best.latency_s > times[low]:
            best = place(bundle.table, works, machines, latency_limit_s=times[low])
    return [
        Seat(i, devices[i].title, student, 0.0 if student is None else works[student].latency_s(machines[i]))
        for i, student in enumerate(best.students)
    ]
