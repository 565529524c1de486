"""Chooses which machine runs which student, from the accuracy of every subset of students.

It is the most accurate placement or, with an accuracy goal, the fastest one that reaches it; the search is
``nonn.reliability.placement``.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Set
from dataclasses import dataclass

from nonn.bundle import Bundle
from nonn.config import DevicesConfig
from nonn.errors import ConfigError, GuaranteeError
from nonn.experiment.workspace import Workspace
from nonn.files import write_json
from nonn.reliability.placement import Machine, Placement, place, works_of
from nonn.students.devices import resolve_devices

__all__ = ["Assignment", "place_students", "placed"]


@dataclass(frozen=True)
class Assignment:
    """A machine and the student it should run.

    Attributes:
        machine: number of the device.
        title: title of the device.
        student: number of the student; None if the machine should be left out.
        latency_s: latency of its answer.
        joules: energy of its answer above rest; None if unknown.
    """

    machine: int
    title: str
    student: int | None
    latency_s: float
    joules: float | None


def placed(space: Workspace, bundle: Bundle) -> list[Assignment]:
    """Places the students on the devices of the experiment and writes ``placement.json`` next to the bundle.

    Raises:
        GuaranteeError: no placement reaches ``devices.goal``.
    """
    assignments = place_students(bundle, space.experiment.devices)
    for one in assignments:
        what = "left out" if one.student is None else f"student {one.student}, {1000 * one.latency_s:.3g} ms"
        what += "" if one.joules is None else f", {1000 * one.joules:.3g} mJ"
        space.progress.say(f"placement: device {one.title}: {what}")
    write_json(space.folder / "placement.json", [dataclasses.asdict(one) for one in assignments])
    return assignments


def place_students(bundle: Bundle, config: DevicesConfig) -> list[Assignment]:
    """The student that each machine should run, from the accuracy of every subset of devices.

    Args:
        bundle: bundle with one student per device.
        config: device classes; with a ``goal`` the fastest placement that reaches it is chosen, else the most accurate.

    Raises:
        ConfigError: no student fits any machine.
        GuaranteeError: no placement reaches the goal within ``answer_s``; the message has the best accuracy.
    """
    devices = resolve_devices(config)
    machines = [
        Machine(
            name=device.title,
            p_fail=device.p_fail,
            macs_per_s=device.macs_per_s,
            memory_bytes=device.budget.peak_bytes or math.inf,
            link_bytes_per_s=device.link_bytes_per_s,
            link_latency_s=device.link_latency_s,
            joule_per_mac=device.joule_per_mac,
            joule_per_byte=device.joule_per_byte,
        )
        for device in devices
    ]
    works = works_of(bundle.manifest.students, (bundle.input_of(i).num_bytes for i in range(bundle.num_devices)))
    limit = config.answer_s or math.inf

    def within(latency_s: float) -> Placement:
        return place(bundle.table, works, machines, latency_limit_s=latency_s)

    best = within(limit)
    if best.expected < config.goal:
        raise GuaranteeError(
            f"devices.goal = {config.goal:g}: the best placement on these devices has an expected accuracy of "
            f"{best.expected:.4f}; lower the goal, raise devices.answer_s, or use more reliable devices"
        )
    if config.goal:
        best = _fastest(config.goal, {w.latency_s(m) for w in works for m in machines}, limit, within)
    return [
        Assignment(i, device.title, None, 0.0, None)
        if student is None
        else Assignment(i, device.title, student, works[student].latency_s(machine), works[student].joules(machine))
        for i, (device, machine, student) in enumerate(zip(devices, machines, best.students, strict=True))
    ]


def _fastest(goal: float, latencies_s: Set[float], limit_s: float, within: Callable[[float], Placement]) -> Placement:
    """The best placement within the least latency that reaches the goal; ``limit_s`` must reach it.

    More time gives more choices: the best expected accuracy grows with the latency, so bisection finds the least.
    """

    def reaches(latency_s: float) -> bool:
        try:
            return within(latency_s).expected >= goal
        except ConfigError:  # no student fits into this latency
            return False

    candidates = sorted(latency for latency in latencies_s if latency <= limit_s)
    return within(candidates[bisect_left(candidates, True, hi=len(candidates) - 1, key=reaches)])
