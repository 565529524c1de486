"""The plan of a rolling update, against random tables, fleets and failures."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.fleet.plan import Blocked, Done, Move, Situation, Switch, accuracy_of, next_step


@st.composite
def situations(draw: Any, replicas: bool = True) -> Any:
    """Two random tables, not even monotone, and a fleet whose nodes keep the number of their student."""
    students = draw(st.integers(1, 4))
    size = 1 << students
    values = st.lists(st.integers(0, 10), min_size=size - 1, max_size=size - 1)
    old, new = (np.array([0, *draw(values)]) / 10 for _ in range(2))
    extra = draw(st.lists(st.integers(0, students - 1), max_size=3)) if replicas else []
    nodes = {f"n{i}": student for i, student in enumerate([*range(students), *extra])}
    return Situation(
        old=old, new=new, on_old=nodes, on_new={}, becomes=dict(nodes), floor=draw(st.integers(0, 10)) / 10
    )


def after(here: Any, step: Any) -> Any:
    """The situation while a step is under way, and that after it."""
    if isinstance(step, Switch):
        done = Situation(**{**vars(here), "switched": True})
        return done, done
    away = {node: student for node, student in here.on_old.items() if node not in step.nodes}
    back = {**here.on_new, **{node: here.becomes[node] for node in step.nodes}}
    return Situation(**{**vars(here), "on_old": away}), Situation(**{**vars(here), "on_old": away, "on_new": back})


def possible(here: Any) -> Any:
    """Whether some order of single moves and one switch keeps the floor: all orders, by brute force."""
    if here.accuracy < here.floor:
        return accuracy_of(here.new, here.on_new) >= here.floor
    seen, stack = set(), [frozenset(here.on_old)]
    while stack:
        left = stack.pop()
        if left in seen:
            continue
        seen.add(left)
        moved = {node: here.becomes[node] for node in here.on_old if node not in left}
        if accuracy_of(here.new, {**here.on_new, **moved}) >= here.floor:
            return True
        for node in left:
            rest = left - {node}
            if accuracy_of(here.old, {n: here.on_old[n] for n in rest}) >= here.floor:
                stack.append(rest)
    return False


@given(situations())
def test_the_floor_is_kept_at_every_moment_and_every_node_arrives_or_the_reason_is_told(start: Any) -> None:
    here = start
    for _ in range(2 * len(start.on_old) + 3):
        step = next_step(here)
        if isinstance(step, Blocked):
            assert "floor" in step.reason
            assert not here.switched
            return
        if isinstance(step, Done):
            assert here.switched
            assert here.on_new == start.becomes
            return
        during, here = after(here, step)
        if not during.switched or isinstance(step, Switch):
            assert during.accuracy >= start.floor
    raise AssertionError("the plan has no end")


@given(situations(replicas=False))
def test_it_refuses_exactly_when_no_order_of_moves_would_keep_the_floor(start: Any) -> None:
    assert isinstance(next_step(start), Blocked) == (not possible(start))


@given(situations(), st.data())
def test_after_failures_no_step_of_ours_breaks_the_floor(start: Any, data: Any) -> None:
    here = start
    for _ in range(2 * len(start.on_old) + 3):
        nodes = sorted([*here.on_old, *here.on_new])
        dead = set(data.draw(st.lists(st.sampled_from(nodes), max_size=1))) if nodes else set()
        here = Situation(
            **{
                **vars(here),
                "on_old": {n: s for n, s in here.on_old.items() if n not in dead},
                "on_new": {n: s for n, s in here.on_new.items() if n not in dead},
            }
        )
        step = next_step(here)
        if isinstance(step, Blocked | Done):
            return
        during, following = after(here, step)
        if not here.switched:
            assert during.accuracy >= here.floor
        here = following


@given(situations(replicas=False))
def test_the_floor_that_it_offers_instead_can_be_kept(start: Any) -> None:
    step = next_step(start)
    if not isinstance(step, Blocked) or "highest floor" not in step.reason:
        return
    offered = float(step.reason.rpartition(" ")[2])
    assert offered < start.floor
    assert not isinstance(next_step(Situation(**{**vars(start), "floor": offered})), Blocked)


def test_a_replica_moves_first_and_then_the_student_that_is_missed_least() -> None:
    table = np.zeros(8)
    for mask in range(8):
        table[mask] = sum(weight for bit, weight in enumerate((0.5, 0.3, 0.15)) if mask >> bit & 1)
    nodes = {"a": 0, "b": 1, "c": 2, "a2": 0}
    here = Situation(old=table, new=table, on_old=nodes, on_new={}, becomes=nodes, floor=0.6)
    moved = []
    for _ in itertools.count():
        step = next_step(here)
        if not isinstance(step, Move) or here.switched:
            break
        moved.append(step.nodes)
        here = after(here, step)[1]
    assert moved[0] == ("a",)
    assert isinstance(step, Switch)
    assert here.accuracy >= 0.6
    assert accuracy_of(here.new, here.on_new) >= 0.6


@pytest.mark.parametrize("students", [12, 16])
def test_a_large_fleet_is_planned_in_seconds(students: Any) -> None:
    masks = np.arange(1 << students)
    table = np.sqrt(sum(masks >> bit & 1 for bit in range(students)) / students)
    nodes = {f"n{i:02}": i for i in range(students)}
    here = Situation(old=table, new=table, on_old=nodes, on_new={}, becomes=nodes, floor=0.7)
    start = time.process_time()
    assert isinstance(next_step(here), Move)
    assert time.process_time() - start < 20  # 0.1 s; other processes do not count
