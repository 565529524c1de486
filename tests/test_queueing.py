"""Requests that wait to share a fan-out: which go together, and which are dropped or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from math import inf
from typing import Any

import numpy as np
import pytest

from nonn.aggregator.queueing import Alarm, Member, Queue
from nonn.errors import OverloadError


def member(num_samples: int = 1, dtype: Any = np.uint8, arrived_at: float = 0.0, deadline_at: float = inf) -> Member:
    answer = asyncio.get_running_loop().create_future()
    return Member(np.zeros((num_samples, 4), dtype), arrived_at, deadline_at, answer, copy_context())


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
        assert queue.pop(5, now=0.0) == [first, second]
        assert queue.num_samples == 1
        assert queue.pop(5, now=0.0) == [third]
        assert not queue

    queued(check)


def test_a_request_above_the_limit_goes_alone() -> None:
    def check(queue: Queue) -> None:
        large, small = member(9), member(1)
        queue.push(large)
        queue.push(small)
        assert queue.pop(4, now=0.0) == [large]

    queued(check)


def test_requests_of_different_dtypes_do_not_mix() -> None:
    def check(queue: Queue) -> None:
        integers, floats = member(dtype=np.uint8), member(dtype=np.float32)
        queue.push(integers)
        queue.push(floats)
        assert queue.pop(8, now=0.0) == [integers]
        assert queue.pop(8, now=0.0) == [floats]

    queued(check)


def test_a_request_whose_client_has_given_up_is_dropped() -> None:
    def check(queue: Queue) -> None:
        gone, stays = member(), member()
        queue.push(gone)
        queue.push(stays)
        gone.answer.cancel()
        assert queue.pop(8, now=0.0) == [stays]
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
