"""When a batch may go and how large it may be: the rules of the batcher, with time as an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.pacing import MIN_PATIENCE_S, BatchLimit, FanoutSlot, Regrouping


def test_one_fan_out_at_a_time_until_it_ends() -> None:
    slot = FanoutSlot()
    assert slot.free(0.0)
    token = slot.take(0.0, usual_s=1.0)
    assert not slot.free(1.9)
    assert slot.release(token)
    assert slot.free(1.9)


def test_a_fan_out_gives_the_slot_up_after_twice_the_usual_time() -> None:
    slot = FanoutSlot()
    token = slot.take(10.0, usual_s=1.0)
    assert slot.overdue_at == 12.0
    assert not slot.free(11.999)
    assert slot.free(12.0)
    assert not slot.release(token)  # its end sends nothing: the next one may be under way


def test_an_overdue_fan_out_that_ends_does_not_free_the_slot_of_the_next_one() -> None:
    slot = FanoutSlot()
    overdue = slot.take(0.0, usual_s=1.0)
    assert slot.free(5.0)
    slot.take(5.0, usual_s=1.0)
    assert not slot.release(overdue)
    assert not slot.free(6.0)


def test_a_quick_cluster_is_not_overdue_before_an_interruption_could_end() -> None:
    slot = FanoutSlot()
    slot.take(0.0, usual_s=1e-4)
    assert slot.overdue_at == MIN_PATIENCE_S


def test_after_a_batch_the_next_one_waits_for_as_many_samples_and_not_longer() -> None:
    regrouping = Regrouping(longest_s=0.2)
    assert regrouping.wait_until(1) < 0.0
    regrouping.on_reply(num_samples=3, num_queued=2, now=10.0, usual_s=0.1)
    assert regrouping.wait_until(4) == pytest.approx(10.1)
    assert regrouping.wait_until(5) < 0.0


def test_the_wait_for_the_same_clients_is_as_long_as_a_fan_out_or_the_limit() -> None:
    regrouping = Regrouping(longest_s=0.2)
    regrouping.on_reply(8, 0, now=1.0, usual_s=5.0)
    assert regrouping.wait_until(1) == pytest.approx(1.2)
    off = Regrouping(longest_s=0.0)
    off.on_reply(8, 0, now=1.0, usual_s=5.0)
    assert off.wait_until(1) <= 1.0


def test_full_batches_that_are_quick_double_the_limit_and_slow_ones_halve_it() -> None:
    limit, sizes = BatchLimit(most=10, long_s=0.25), []
    for _ in range(5):
        limit.on_fanout(limit.size, took_s=0.1)
        sizes.append(limit.size)
    assert sizes == [2, 4, 8, 10, 10]
    limit.on_fanout(3, took_s=0.1)  # not full: it proves nothing about larger ones
    assert limit.size == 10
    for _ in range(4):
        limit.on_fanout(limit.size, took_s=0.3)
        sizes.append(limit.size)
    assert sizes[-4:] == [5, 2, 1, 1]


def test_a_slow_batch_that_is_not_full_halves_its_own_size() -> None:
    limit = BatchLimit(most=64, long_s=0.25)
    limit.size = 64
    limit.on_fanout(6, took_s=1.0)
    assert limit.size == 3


def test_a_lone_slow_request_leaves_the_limit_alone() -> None:
    limit = BatchLimit(most=64, long_s=0.25)
    limit.size = 8
    limit.on_fanout(1, took_s=9.0)
    assert limit.size == 8


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(1, 200), st.floats(0.0, 1.0)), max_size=50))
def test_the_limit_stays_between_one_and_the_most(most: int, fanouts: list[tuple[int, float]]) -> None:
    limit = BatchLimit(most, long_s=0.25)
    for num_samples, took_s in fanouts:
        limit.on_fanout(num_samples, took_s)
        assert 1 <= limit.size <= most
