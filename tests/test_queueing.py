"""Requests that wait to share a fan-out: which go together, and which are dropped or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.queueing import Alarm, BatchMember, Queue
from nonn.errors import OverloadError


def member(
    num_samples: int = 1,
    dtype: Any = np.uint8,
    arrived_at: float = 0.0,
    deadline_at: float = inf,
    caller: str = "",
    connection: str = "",
) -> BatchMember:
    answer, batch = asyncio.get_running_loop().create_future(), np.zeros((num_samples, 4), dtype)
    return BatchMember(batch, arrived_at, deadline_at, answer, copy_context(), caller, connection)


def popped(queue: Queue, limit: int, now: float = 0.0) -> list[tuple[BatchMember, int, int]]:
    """The pieces of the next batch."""
    return [(piece.member, piece.start, piece.stop) for piece in queue.pop(limit, now)]


def queued(check: Callable[[Queue], None]) -> None:
    """Runs a check of an empty queue inside an event loop, where members can be made."""

    async def scenario() -> None:
        check(Queue())

    asyncio.run(scenario())


def test_requests_go_in_the_order_of_arrival_up_to_the_limit() -> None:
    def check(queue: Queue) -> None:
        first, second, third = member(2), member(3), member(1)
        for each in (first, second, third):
            queue.push(each)
        assert queue.num_samples == 6
        assert popped(queue, 5) == [(first, 0, 2), (second, 0, 3)]
        assert queue.num_samples == 1
        assert popped(queue, 5) == [(third, 0, 1)]
        assert not queue

    queued(check)


def test_a_request_above_the_limit_goes_in_pieces() -> None:
    def check(queue: Queue) -> None:
        large, small = member(9), member(1)
        queue.push(large)
        queue.push(small)
        assert popped(queue, 4) == [(large, 0, 4)]
        assert popped(queue, 4) == [(large, 4, 8)]
        assert queue.num_samples == 2
        assert popped(queue, 4) == [(large, 8, 9), (small, 0, 1)]
        assert not queue

    queued(check)


def test_callers_share_a_batch_fairly_whatever_the_sizes_of_their_requests() -> None:
    def check(queue: Queue) -> None:
        large, many = member(100, caller="large"), [member(2, caller="many") for _ in range(50)]
        for each in (large, *many):
            queue.push(each)
        modest = []
        for turn in range(4):
            modest.append(member(1, caller="modest"))
            queue.push(modest[-1])
            shares = {"large": 0, "many": 0, "modest": 0}
            for each, start, stop in popped(queue, 12):
                shares[each.caller] += stop - start
            assert shares["modest"] == 1, turn  # nobody with few requests ever waits for a second batch
            assert abs(shares["large"] - shares["many"]) <= 4
            assert sum(shares.values()) == 12

    queued(check)


def test_callers_take_turns_where_a_batch_has_no_room_for_all() -> None:
    def check(queue: Queue) -> None:
        for i in range(5):
            for _ in range(4):
                queue.push(member(caller=f"c{i}"))
        sent = [[each.caller for each, _, _ in popped(queue, 2)] for _ in range(5)]
        assert sent == [["c0", "c1"], ["c2", "c3"], ["c4", "c0"], ["c1", "c2"], ["c3", "c4"]]

    queued(check)


def test_a_caller_gains_nothing_by_more_connections() -> None:
    def check(queue: Queue) -> None:
        shares = {"many": 0, "one": 0}
        for turn in range(6):
            for number in range(30):
                queue.push(member(caller="many", connection=f"{turn} {number}"))
                queue.push(member(caller="one"))
            for each, start, stop in popped(queue, 4):
                shares[each.caller] += stop - start
        assert shares == {"many": 12, "one": 12}

    queued(check)


def test_the_connections_of_a_caller_divide_its_share_whatever_the_sizes_of_their_requests() -> None:
    def check(queue: Queue) -> None:
        large, many = member(100, connection="large"), [member(4, connection="many") for _ in range(25)]
        for each in (large, *many):
            queue.push(each)
        assert popped(queue, 12) == [(large, 0, 12)]
        sent = {"large": 12, "many": 0, "modest": 0}
        for turn in range(6):
            for _ in range(3):
                queue.push(member(connection="modest"))
            for each, start, stop in popped(queue, 12):
                sent[each.connection] += stop - start
            assert sent["modest"] >= 3 * turn  # those of the last turn, at the latest
        assert sum(sent.values()) == 12 * 7
        assert abs(sent["large"] - sent["many"]) <= 12

    queued(check)


def test_connections_of_a_caller_with_the_dtype_of_the_batch_pass_the_others_which_are_next() -> None:
    def check(queue: Queue) -> None:
        members = [
            member(dtype=dtype, connection=str(number))
            for number, dtype in enumerate([np.uint8, np.float32, np.uint8, np.float32])
        ]
        for each in members:
            queue.push(each)
        assert popped(queue, 8) == [(members[0], 0, 1), (members[2], 0, 1)]
        queue.push(member(dtype=np.uint8, connection="late"))
        assert popped(queue, 8) == [(members[1], 0, 1), (members[3], 0, 1)]

    queued(check)


def test_a_request_that_is_larger_than_a_share_is_not_starved_by_small_ones() -> None:
    def check(queue: Queue) -> None:
        seven = member(7, caller="seven")
        queue.push(seven)
        for _ in range(8):
            for i in range(8):
                queue.push(member(1, caller=f"c{i}"))
            if any(each is seven for each, _, _ in popped(queue, 8)):
                break
        assert seven.num_left == 0

    queued(check)


def test_the_caller_that_waits_with_the_most_makes_room() -> None:
    def check(queue: Queue) -> None:
        first, second = member(3, caller="a"), member(3, caller="a")
        for each in (first, second, member(1, caller="b")):
            queue.push(each)
        assert queue.push_out("a", 1) is None
        assert queue.push_out("c", 6) is None
        assert queue.push_out("c", 2) is second
        assert queue.num_samples == 4
        assert queue.push_out("c", 2) is first
        assert queue.push_out("c", 2) is None

    queued(check)


def test_within_a_caller_the_connection_that_waits_with_the_most_makes_room() -> None:
    def check(queue: Queue) -> None:
        first, second = member(3, caller="a", connection="x"), member(3, caller="a", connection="x")
        for each in (first, second, member(2, caller="b"), member(1, caller="a", connection="y")):
            queue.push(each)
        assert queue.push_out("a", 5, "y") is None
        assert queue.push_out("a", 4, "y") is second
        assert queue.push_out("a", 3, "x") is None
        assert queue.push_out("b", 1) is first
        assert queue.num_samples == 3
        assert {each.connection for each, _, _ in popped(queue, 8)} == {"", "y"}
        assert not queue

    queued(check)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 30), st.booleans()), max_size=40),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
)
def test_every_sample_is_sent_once_in_the_order_of_its_connection(
    arrivals: list[tuple[int, int, int, bool]], limits: list[int]
) -> None:
    def check(queue: Queue) -> None:
        members = [
            member(size, np.uint8 if small else np.float32, caller=f"c{caller}", connection=f"{connection}")
            for caller, connection, size, small in arrivals
        ]
        sent: dict[int, list[int]] = {id(each): [] for each in members}
        order: dict[tuple[str, str], list[BatchMember]] = {}
        for each in members:
            queue.push(each)
        for k in range(5000):
            limit = limits[k % len(limits)]
            pieces = queue.pop(limit, 0.0)
            assert sum(map(len, pieces)) <= limit
            assert len({piece.member.batch.dtype for piece in pieces}) <= 1
            for piece in pieces:
                assert piece.batch.shape == (len(piece), 4)
                sent[id(piece.member)] += range(piece.start, piece.stop)
                line = order.setdefault((piece.member.caller, piece.member.connection), [])
                line.append(piece.member) if piece.member not in line else None
            if not queue:
                break
            assert pieces
        assert queue.num_samples == 0
        assert all(sent[id(each)] == list(range(len(each.batch))) for each in members)
        for key, line in order.items():
            assert line == [each for each in members if (each.caller, each.connection) == key]

    queued(check)


@pytest.mark.timeout(60)
def test_a_request_behind_a_large_one_of_another_dtype_keeps_its_credit() -> None:
    """Otherwise it is about to fit for ever, and ``pop`` never returns."""

    def check(queue: Queue) -> None:
        first = member(1, np.uint8, caller="a")
        large, small = member(30, np.float32, caller="b", connection="x"), member(2, caller="b", connection="y")
        for each in (first, large, small, member(1, np.float32, caller="c")):
            queue.push(each)
        assert popped(queue, 3) == [(first, 0, 1), (small, 0, 2)]

    queued(check)


def test_requests_of_different_dtypes_do_not_mix() -> None:
    def check(queue: Queue) -> None:
        integers, floats = member(dtype=np.uint8), member(dtype=np.float32)
        queue.push(integers)
        queue.push(floats)
        assert popped(queue, 8) == [(integers, 0, 1)]
        assert popped(queue, 8) == [(floats, 0, 1)]

    queued(check)


def test_a_request_whose_client_has_given_up_is_dropped() -> None:
    def check(queue: Queue) -> None:
        gone, stays = member(), member()
        queue.push(gone)
        queue.push(stays)
        gone.answer.cancel()
        assert popped(queue, 8) == [(stays, 0, 1)]
        assert queue.num_samples == 0

    queued(check)


def test_a_request_whose_deadline_has_passed_is_refused_with_the_time_that_it_waited() -> None:
    def check(queue: Queue) -> None:
        late = member(arrived_at=1.0, deadline_at=3.0)
        queue.push(late)
        assert queue.pop(8, now=3.5) == []
        with pytest.raises(OverloadError, match=r"waited 2\.50 s"):
            late.answer.result()

    queued(check)


def test_the_alarm_rings_once_at_the_earliest_time_that_was_asked_for() -> None:
    rings = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()

        def ring() -> None:
            rings.append(loop.time())
            rung.set()

        alarm, start = Alarm(ring), loop.time()
        alarm.set(start + 3600)
        alarm.set(start)
        alarm.set(start + 7200)
        await rung.wait()
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert len(rings) == 1
