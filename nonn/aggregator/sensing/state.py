"""The state of nodes that sense as a document: /api/sensing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nonn.documents import Whole
from nonn.sensing.alignment import SensingNode

__all__ = ["ClockState", "SensingNodeState", "SensingState", "sensing_node_state"]


@dataclass(frozen=True, kw_only=True)
class ClockState:
    """The clock of a node.

    Attributes:
        offset_s: its time minus that of the aggregator.
        drift_ppm: change of the offset, in microseconds a second.
        error_s: bound on the error of the offset.
        steps: how often the clock was set, or the device suspended, in total.
        trusted: whether its times are used.
    """

    offset_s: float
    drift_ppm: float
    error_s: float
    steps: Whole
    trusted: bool


@dataclass(frozen=True, kw_only=True)
class SensingNodeState:
    """One node that senses.

    Attributes:
        unit: the student that it runs.
        clock: its clock; null before the first exchange of times.
        windows: its windows by verdict, and points without data by reason.
        late_s: mean lateness of its late windows.
        battery_percent: charge of its battery; null if it does not report it.
        rests: whether the aggregator asked it to send nothing.
    """

    unit: Whole
    clock: ClockState | None
    windows: Mapping[str, int]
    late_s: float
    battery_percent: Whole | None
    rests: bool


@dataclass(frozen=True, kw_only=True)
class SensingState:
    """All nodes that sense.

    Attributes:
        hop_s: time between two windows.
        speed: how much faster than life the nodes replay recordings.
        counts: answers, bytes and windows by verdict, in total.
        nodes: the nodes by id.
    """

    hop_s: float
    speed: float
    counts: Mapping[str, int]
    nodes: Mapping[str, SensingNodeState]


def sensing_node_state(record: SensingNode, battery_percent: int | None, now: float) -> SensingNodeState:
    """The state of one node at a time of our clock."""
    estimate, clock = record.clock.estimate, None
    if estimate:
        clock = ClockState(
            offset_s=estimate.offset_at(now),
            drift_ppm=1e6 * estimate.drift,
            error_s=estimate.error_at(now),
            steps=record.clock.steps,
            trusted=record.clock.trusted(now),
        )
    return SensingNodeState(
        unit=record.unit,
        clock=clock,
        windows=dict(record.counts),
        late_s=record.late_s,
        battery_percent=battery_percent,
        rests=record.rests,
    )
