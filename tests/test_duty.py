"""Duty cycle: which units sense if some of them suffice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonn.errors import ConfigError
from nonn.reliability.subsets import mask_of
from nonn.sensing.duty import MISSES, DutyCycle

# One unit 0.7, two 0.9, three or four 0.95.
ACCURACY = np.array([0.0, 0.7, 0.9, 0.95, 0.95])[[mask.bit_count() for mask in range(16)]]
FULL: dict[int, int | None] = dict.fromkeys(range(4), 100)


def test_as_few_units_work_as_reach_the_goal_and_they_rotate_by_charge() -> None:
    duty = DutyCycle(ACCURACY, 0.9, 60.0)
    charge, served = dict(FULL), Counter[int]()
    for now in range(0, 2400, 10):
        working = duty.update(float(now), charge, duty.working)
        assert len(working) == 2
        served.update(working)
        for unit in working:
            charge[unit] = 100 - served[unit] // 4
    assert max(served.values()) - min(served.values()) <= 12  # two periods


def test_units_of_unknown_charge_rotate_by_time() -> None:
    duty, served = DutyCycle(ACCURACY, 0.7, 60.0), Counter[int]()
    for now in range(0, 2400, 10):
        served.update(duty.update(float(now), dict.fromkeys(range(4), None), duty.working))
    assert max(served.values()) - min(served.values()) <= 6


def test_a_unit_that_stops_sensing_is_replaced_after_two_answers_and_tried_again_later() -> None:
    duty = DutyCycle(ACCURACY, 0.9, 60.0)
    charge: dict[int, int | None] = {0: 90, 1: 80, 2: 20, 3: 10}
    assert duty.update(0.0, charge, ()) == {0, 1}
    duty.update(1.0, charge, {0, 1})
    assert duty.update(2.0, charge, {0}) == {0, 1}  # one window is lost
    duty.update(3.0, charge, {0, 1})
    for answer in range(MISSES):
        working = duty.update(4.0 + answer, charge, {0})
    assert working == {0, 2}
    assert duty.update(50.0, charge, {0, 2}) == {0, 2}
    assert duty.update(66.0, charge, {0, 2}) == {0, 1}  # the next period


def test_with_too_few_units_all_work_until_one_that_failed_may_be_tried_again() -> None:
    duty = DutyCycle(ACCURACY, 0.95, 60.0)
    charge: dict[int, int | None] = {0: 90, 1: 80, 2: 20}
    assert duty.update(0.0, charge, ()) == {0, 1, 2}
    for now in range(1, 4):
        assert duty.update(float(now), charge, {0, 1, 2} if now == 1 else {0, 1}) == {0, 1, 2}
    charge[3] = 70
    assert duty.update(4.0, charge, {0, 1}) == {0, 1, 3}


def test_a_unit_that_has_just_joined_has_time_until_its_first_window() -> None:
    duty = DutyCycle(ACCURACY, 0.9, 60.0, warm_up=5)
    assert duty.update(0.0, {0: 50}, {0}) == {0}  # the goal is out of reach
    assert duty.update(1.0, {0: 50, 3: 60}, {0}) == {0, 3}
    for now in range(2, 6):
        assert duty.update(float(now), {0: 50, 3: 60, 1: 10} if now > 2 else {0: 50, 3: 60}, {0}) == {0, 3}
    assert duty.update(6.0, {0: 50, 3: 60, 1: 10}, {0}) == {0, 1}


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3)), st.integers(0, 99)), max_size=30))
def test_whatever_happens_the_goal_is_reached_or_every_present_unit_works(
    steps: list[tuple[set[int], set[int], int]],
) -> None:
    duty, now = DutyCycle(ACCURACY, 0.9, 60.0), 0.0
    for present, answered, wait in steps:
        now += wait
        working = duty.update(now, dict.fromkeys(present, 50), answered & present)
        assert working <= present
        assert ACCURACY[mask_of(working)] >= 0.9 or working == present


def test_the_quorum_holds_and_a_goal_that_no_set_reaches_is_refused() -> None:
    assert len(DutyCycle(ACCURACY, 0.5, least=3).update(0.0, FULL, ())) == 3
    with pytest.raises(ConfigError, match=r"accuracy goal 0\.96: .*at most 0\.9500"):
        DutyCycle(ACCURACY, 0.96)
    with pytest.raises(ConfigError, match="above 0"):
        DutyCycle(ACCURACY, 0.0)
