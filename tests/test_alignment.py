"""Windows of several nodes on one grid, with synthetic clocks: no time passes here."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonn.errors import ConfigError, MembershipError
from nonn.sensing.alignment import Alignment, AlignmentConfig
from nonn.sensing.clocks import ClockFilter, Exchange

HOP = 1.0
START = 1.7e9  # as Unix time: floats must have enough digits left


class Node:
    """A node's clock and its link."""

    def __init__(self, offset_s: float = 0.0, ppm: float = 0.0, seed: int = 0, slow_s: float = 0.05) -> None:
        self.offset_s, self.drift, self.slow_s = offset_s, ppm * 1e-6, slow_s
        self._random = random.Random(seed)

    def clock(self, now: float) -> float:
        return now + self.offset_s + self.drift * (now - START)

    def exchange(self, now: float) -> Exchange:
        """One exchange; each direction takes 1 ms and a random time, mostly little."""
        there, back = (0.001 + self._random.expovariate(1 / self.slow_s) for _ in range(2))
        received = self.clock(now + there)
        return Exchange(now, received, received + 0.0001, now + there + 0.0001 + back)


def synchronised(node: Node, seconds: int = 60, clock: ClockFilter | None = None, start: float = START) -> ClockFilter:
    clock = clock or ClockFilter()
    for second in range(seconds):
        clock.add(node.exchange(start + second))
    return clock


@settings(max_examples=30)
@given(st.floats(-1e4, 1e4), st.floats(-300, 300), st.integers(0, 5))
def test_offset_and_drift_are_found_through_a_link_that_delays_at_random(offset: float, ppm: float, seed: int) -> None:
    node, now = Node(offset, ppm, seed), START + 125.0
    clock = synchronised(node, 120)
    assert clock.steps == 0
    assert clock.trusted(now)
    assert clock.estimate is not None
    assert abs(clock.estimate.drift - ppm * 1e-6) < 80e-6
    assert abs(clock.to_ours(node.clock(now)) - now) < 0.02
    assert abs(clock.to_ours(node.clock(now)) - now) <= clock.estimate.error_at(now)
    assert abs(clock.to_theirs(now) - node.clock(now)) < 0.02


def test_one_fast_exchange_among_slow_ones_is_enough() -> None:
    node = Node(2.0, slow_s=1e-6)
    clock = ClockFilter()
    clock.add(node.exchange(START))
    node.slow_s = 3.0
    for second in range(1, 4):
        clock.add(node.exchange(START + second))
    assert clock.estimate is not None
    assert abs(clock.estimate.offset - 2.0) < 0.002
    assert clock.estimate.error < 0.002


def test_a_step_is_seen_at_the_next_exchange_and_three_in_a_minute_end_the_trust_for_one() -> None:
    node = Node(slow_s=0.01)
    clock = synchronised(node, 30)
    for number, second in enumerate((30, 40, 50), start=1):
        node.offset_s += 1.0
        assert clock.add(node.exchange(START + second))
        assert not clock.add(node.exchange(START + second + 1))
        assert clock.steps == number
        assert clock.trusted(START + second + 1) is (number < 3)
        assert abs(clock.to_ours(node.clock(START + second + 1)) - START - second - 1) < 0.05
    assert clock.trusted(START + 111)


def test_a_device_that_was_suspended_has_a_clock_that_stepped() -> None:
    node = Node(slow_s=0.001)
    clock = synchronised(node, 20)
    node.offset_s = -600.0  # ten minutes that its clock did not count
    assert clock.add(node.exchange(START + 620))
    assert abs(clock.to_ours(node.clock(START + 621)) - START - 621) < 0.01


class Cluster:
    """Nodes that cut windows where the alignment tells them, and the alignment."""

    def __init__(self, *nodes: Node, **config: Any) -> None:
        self.nodes = dict(enumerate(nodes))
        self.alignment = Alignment[str](AlignmentConfig(hop_s=HOP, **config))
        self.now = START
        for unit, node in self.nodes.items():
            self.alignment.join(str(unit), unit, self.now)
            for k in range(8):
                self.alignment.exchange(str(unit), node.exchange(self.now + k / 100))
        self.now += 0.1

    def send(self, unit: int, end_s: float, delay_s: float = 0.05, **more: Any) -> str:
        self.now = end_s + delay_s
        theirs = self.nodes[unit].clock(end_s)
        return self.alignment.offer(
            str(unit),
            theirs,
            more.get("payload", f"{unit}@{end_s}"),
            self.now,
            **({"reason": more["reason"]} if "reason" in more else {}),
        )


def test_windows_of_wrong_clocks_meet_and_are_answered_at_once_when_all_are_there() -> None:
    cluster = Cluster(Node(2.0, 100, slow_s=0.001), Node(-2.0, -100, 1, slow_s=0.001))
    for second in range(1, 90):
        end_s = START + second
        for unit, node in cluster.nodes.items():
            cluster.alignment.exchange(str(unit), node.exchange(end_s - 0.5))
        assert cluster.send(0, end_s) == "taken"
        assert cluster.alignment.due(cluster.now) == []
        assert cluster.alignment.next_due(cluster.now) == end_s + HOP / 2
        assert cluster.send(1, end_s, 0.1) == "taken"
        (point,) = cluster.alignment.due(cluster.now)
        assert point.end_s == end_s
        assert point.windows == {"0": f"0@{end_s}", "1": f"1@{end_s}"}
        assert not point.absent
    drifts = [1e6 * r.clock.estimate.drift for r in cluster.alignment.nodes.values() if r.clock.estimate]
    assert drifts == pytest.approx([100, -100], abs=20)


def test_phase_tells_a_node_where_the_grid_is_on_its_clock() -> None:
    cluster = Cluster(Node(1.234, slow_s=0.001))
    phase = cluster.alignment.phase("0", START + 0.3)
    assert phase is not None
    assert abs(phase - (START + 1 + 1.234)) < 0.002


def test_a_window_that_does_not_come_is_waited_for_once_and_then_its_node_is_silent() -> None:
    cluster = Cluster(Node(slow_s=0.001), Node(slow_s=0.001))
    for second in range(1, 7):
        end_s = START + second
        cluster.send(0, end_s)
        points = cluster.alignment.due(cluster.now)
        if second <= 3:
            assert points == []
            points = cluster.alignment.due(end_s + HOP / 2)
            assert points[0].absent == {"1": "its window has not arrived in time"}
        else:
            assert points[0].absent == {"1": f"silent for {second} windows"}
        assert list(points[0].windows) == ["0"]


def test_a_late_window_changes_statistics_and_no_answer() -> None:
    cluster = Cluster(Node(slow_s=0.001), Node(slow_s=0.001))
    cluster.send(0, START + 1)
    assert len(cluster.alignment.due(START + 1.5)) == 1
    assert cluster.send(1, START + 1, 0.8) == "late"
    assert cluster.alignment.due(START + 1.8) == []
    record = cluster.alignment.nodes["1"]
    assert record.counts["late"] == 1
    assert record.late_s == pytest.approx(0.3)
    assert cluster.send(1, START + 2) == "taken", "the node has been heard again"


def test_windows_that_do_not_belong_are_refused_each_with_its_verdict() -> None:
    cluster = Cluster(Node(slow_s=0.001), Node(slow_s=0.001))
    assert cluster.send(0, START + 1) == "taken"
    assert cluster.send(0, START + 1) == "twice"
    assert cluster.send(0, START + 2.3) == "off grid"
    assert cluster.send(0, START + 3, -0.9) == "early"
    cluster.alignment.join("2", 2, cluster.now)
    assert cluster.alignment.offer("2", START + 3, "x", cluster.now) == "clock"


def test_no_data_is_an_answer_of_the_node_and_its_reason_is_stated() -> None:
    cluster = Cluster(Node(slow_s=0.001), Node(slow_s=0.001))
    cluster.send(0, START + 1)
    cluster.send(1, START + 1, payload=None, reason="flat")
    (point,) = cluster.alignment.due(cluster.now)
    assert list(point.windows) == ["0"]
    assert point.absent == {"1": "no data: flat"}


def test_a_clock_that_is_not_trusted_costs_its_node_the_place_in_the_mask_and_nobody_waits() -> None:
    cluster = Cluster(Node(slow_s=0.001), Node(slow_s=0.001))
    for step in range(1, 4):
        cluster.nodes[1].offset_s += 5.0
        assert cluster.alignment.exchange("1", cluster.nodes[1].exchange(START + 0.1 + step / 10))
    cluster.send(0, START + 1)
    assert cluster.send(1, START + 1) == "clock"
    (point,) = cluster.alignment.due(cluster.now)
    assert "not trusted" in point.absent["1"]


def test_a_tolerance_that_the_clock_cannot_keep_is_stated() -> None:
    cluster = Cluster(Node(slow_s=0.001), tolerance_s=0.0001)
    assert cluster.send(0, START + 1) == "clock"
    (point,) = cluster.alignment.due(START + 1.5)
    assert "known to" in point.absent["0"]
    assert "tolerance is 0.0001 s" in point.absent["0"]


def test_after_a_stand_still_of_this_process_old_points_are_skipped_and_no_node_is_blamed_for_hours() -> None:
    cluster = Cluster(Node(slow_s=0.001))
    points = cluster.alignment.due(START + 3600.7)
    assert [point.end_s - START for point in points] == list(range(3593, 3601))
    assert cluster.send(0, START + 3601) == "clock", "nothing is known about so old a clock"
    cluster.alignment.exchange("0", cluster.nodes[0].exchange(START + 3601))
    assert cluster.send(0, START + 3602) == "taken"


def test_without_nodes_nothing_is_due() -> None:
    cluster = Cluster(Node())
    cluster.alignment.leave("0")
    assert cluster.alignment.due(START + 100) == []
    assert cluster.alignment.next_due(START + 100) is None


def test_two_nodes_for_one_unit_are_refused_by_name_and_a_node_may_come_back() -> None:
    cluster = Cluster(Node(), Node())
    with pytest.raises(MembershipError, match=r"node 'b': unit 1 is sensed by node '1' already.*--student"):
        cluster.alignment.join("b", 1, START)
    cluster.alignment.nodes["1"].counts["late"] = 3
    assert cluster.alignment.join("1", 1, START).counts["late"] == 3


@pytest.mark.parametrize("config", [{"tolerance_s": 0.6}, {"tolerance_s": 0.0}, {"wait_s": 11.0}, {"wait_s": -1.0}])
def test_times_that_make_no_sense_are_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"tolerance of|wait of"):
        AlignmentConfig(hop_s=HOP, **config)
