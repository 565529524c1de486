"""Placement of students on devices, and the gain from one more device.

Devices differ in reliability, speed, memory and link; students differ in cost and in the accuracy lost without them. A
placement assigns each device one student or none. Several devices may run the same student, which answers if any of
them does. Devices fail independently, so student i answers with probability ``u_i = 1 − Π p_q`` over the devices q that
run it, and expected accuracy is multilinear in u.

``place`` is exact for small problems (branch and bound); larger ones use a local search from a linear assignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from nonn.errors import ConfigError, ShapeError
from nonn.reliability.laws.base import FloatArray
from nonn.reliability.placement_search import PlacementSearch, expected_accuracy
from nonn.reliability.table import SubsetTable
from nonn.toml import check
from nonn.toml.constraints import NotNegative, Positive, Share

__all__ = [
    "Machine",
    "Placement",
    "Replica",
    "Speed",
    "Work",
    "expected_accuracy",
    "place",
    "price_of_one_more",
    "works_of",
]

EXACT_CHOICES = 300_000  # placements up to which the search is exact; a search takes seconds at most
_RESTARTS = 10


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a device answers, and with how much energy; an unknown part takes no time and no energy."""

    macs_per_s: Annotated[Positive, "measured speed of the device"] = math.inf
    link_bytes_per_s: Annotated[Positive, "bandwidth of its link"] = math.inf
    link_latency_s: Annotated[NotNegative, "round-trip time of its link"] = 0.0
    joule_per_mac: Annotated[NotNegative, "energy of a multiply-accumulate, above rest"] = 0.0
    joule_per_byte: Annotated[NotNegative, "energy of a byte that it receives or sends, above rest"] = 0.0

    def latency_s(self, macs: int, feature_bytes: int) -> float:
        """Time from the request until the features are back."""
        return macs / self.macs_per_s + feature_bytes / self.link_bytes_per_s + self.link_latency_s

    def joules(self, macs: int, radio_bytes: int) -> float | None:
        """Energy of one answer, above rest; None if nothing is known of it.

        Args:
            macs: multiply-accumulates; their energy is (power of a student − power at rest) × time.
            radio_bytes: that it receives and sends.
        """
        if not (self.joule_per_mac or self.joule_per_byte):
            return None
        return macs * self.joule_per_mac + radio_bytes * self.joule_per_byte


@dataclass(frozen=True, kw_only=True)
class Machine(Speed):
    """A machine that a student could run on.

    Raises:
        ConfigError: a value is impossible.
    """

    name: Annotated[str, "name in messages and results"]
    p_fail: Annotated[Share, "probability that it does not answer"]
    memory_bytes: Annotated[Positive, "memory for the student's file"] = math.inf

    def __post_init__(self) -> None:
        check(self, f"device '{self.name}': ")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a student needs.

    Attributes:
        macs: multiply-accumulates of one answer.
        model_bytes: size of its file, bytes.
        feature_bytes: size of the features that it sends for one answer, bytes.
        input_bytes: size of what it receives for one answer, bytes; only energy depends on it.
    """

    macs: int
    model_bytes: int
    feature_bytes: int
    input_bytes: int = 0

    def latency_s(self, device: Machine) -> float:
        """Time from the request until the features are back."""
        return device.latency_s(self.macs, self.feature_bytes)

    def joules(self, device: Machine) -> float | None:
        """Energy of one answer, above rest; None if nothing is known of it."""
        return device.joules(self.macs, self.input_bytes + self.feature_bytes)

    def fits(self, device: Machine, latency_limit_s: float) -> bool:
        """Whether a device has memory for the student and answers in time."""
        return self.model_bytes <= device.memory_bytes and self.latency_s(device) <= latency_limit_s


class StudentCost(Protocol):
    """The costs of a student that placement reads, as in ``nonn.bundle.StudentEntry``.

    Attributes:
        macs: multiply-accumulates of one answer.
        bytes: size of its file, bytes.
        feature_bytes: size of the features that it sends for one answer, bytes.
    """

    @property
    def macs(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def feature_bytes(self) -> int: ...


def works_of(students: Sequence[StudentCost], input_bytes: Iterable[int] = ()) -> list[Work]:
    """What each student needs.

    Args:
        students: their costs [N].
        input_bytes: size of what each receives for one answer [N]; without it no energy is counted for that.
    """
    received = tuple(input_bytes) or (0,) * len(students)
    return [
        Work(macs=s.macs, model_bytes=s.bytes, feature_bytes=s.feature_bytes, input_bytes=size)
        for s, size in zip(students, received, strict=True)
    ]


@dataclass(frozen=True)
class Placement:
    """Where students run.

    Attributes:
        students: student of each device; None for a device without one.
        expected: expected accuracy.
        latency_s: latency of the slowest device in use.
        exact: whether the placement is proven optimal; otherwise no better one was found.
    """

    students: tuple[int | None, ...]
    expected: float
    latency_s: float
    exact: bool


@dataclass(frozen=True)
class Replica:
    """One more device that runs a student, which other devices may run already.

    Attributes:
        student: number of the student.
        expected: expected accuracy with the device.
        gain: gain in expected accuracy.
    """

    student: int
    expected: float
    gain: float


def price_of_one_more(
    table: SubsetTable, p_up: FloatArray, device: Machine, works: Sequence[Work] = (), latency_limit_s: float = math.inf
) -> list[Replica]:
    """Ranks the students that one more device could run.

    Args:
        table: accuracy of every subset of students.
        p_up: probability that student i answers now [N].
        device: the device to add.
        works: what each student needs [N]; without them every student fits.
        latency_limit_s: time within which the device must answer.

    Returns:
        The students that fit, the best first. Exact: expected accuracy is linear in each u_i.
    """
    now = expected_accuracy(table, p_up)
    rows = []
    for student in range(table.num_devices):
        if works and not works[student].fits(device, latency_limit_s):
            continue
        with_it = p_up.copy()
        with_it[student] = 1 - (1 - p_up[student]) * device.p_fail
        then = expected_accuracy(table, with_it)
        rows.append(Replica(student, then, then - now))
    return sorted(rows, key=lambda row: -row.gain)


def place(
    table: SubsetTable,
    works: Sequence[Work],
    devices: Sequence[Machine],
    *,
    latency_limit_s: float = math.inf,
    seed: int = 0,
) -> Placement:
    """Finds the placement with the highest expected accuracy.

    Args:
        table: accuracy of every subset of students.
        works: what each student needs [N].
        devices: machines, more or fewer than students.
        latency_limit_s: every device in use must answer within it.
        seed: seed of the local search.

    Returns:
        The optimum where there are at most 300,000 placements, counting for each device the students that fit it and
        none. Otherwise the best of 10 local searches: the first starts from the linear assignment of the most
        important students to the most reliable devices, the others from random placements. Each changes one device's
        student or swaps two until nothing improves.

    Raises:
        ShapeError: ``works`` does not have one entry per student.
        ConfigError: no device can run any student within the limits.
    """
    if len(works) != table.num_devices:
        raise ShapeError(f"{len(works)} works for a table of {table.num_devices} students")
    fits = np.array([[w.fits(d, latency_limit_s) for w in works] for d in devices], dtype=bool).reshape(
        len(devices), -1
    )
    if not fits.any():
        raise ConfigError(
            f"no student fits any of the {len(devices)} devices within {latency_limit_s:g} s: "
            "raise the latency limit, or use devices with more speed or memory"
        )
    p_fail = np.array([d.p_fail for d in devices])
    search = PlacementSearch(table, p_fail, fits)
    exact = math.prod(int(row.sum()) + 1 for row in fits) <= EXACT_CHOICES
    start = search.climb(search.assignment())
    if exact:
        chosen = search.branch_and_bound(start)
    else:
        rng = np.random.default_rng(seed)
        tries = [start, *(search.climb(search.random(rng)) for _ in range(_RESTARTS - 1))]
        chosen = max(tries, key=search.value)
    used = [works[s].latency_s(d) for s, d in zip(chosen, devices, strict=True) if s >= 0]
    return Placement(
        tuple(None if s < 0 else int(s) for s in chosen), search.value(chosen), max(used, default=0.0), exact
    )
