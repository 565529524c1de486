"""A clock that stands still while the process does not run."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.events import Observers
from nonn.aggregator.fanout import Fanout
from nonn.aggregator.inventory import Node
from nonn.aggregator.reply import silence
from nonn.aggregator.stalls import STALL_S, TICK_S, StallClock
from nonn.aggregator.states import NodeStates
from nonn.bundle import Bundle
from tests.policies import policy_of

NUM_DEVICES = 1


class Time:
    """Time of a test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def ticking() -> tuple[Time, StallClock, asyncio.Task[None]]:
    """A clock whose ticks have begun; must be called in an event loop."""
    time = Time()
    clock = StallClock(time)
    return time, clock, asyncio.ensure_future(clock.keep())


def test_a_stall_takes_no_time_and_the_first_reading_after_it_finds_it() -> None:
    async def scenario() -> None:
        time, clock, task = ticking()
        await asyncio.sleep(0)
        time.now += 0.1
        assert clock() == pytest.approx(100.1)
        asked_at = clock()
        time.now += 3.0
        assert clock() == pytest.approx(100.1 + TICK_S)
        assert clock.stalled_s == pytest.approx(3.0 - TICK_S)
        assert clock.stalled_since(asked_at)
        time.now += 0.1
        assert clock() == pytest.approx(100.2 + TICK_S)
        assert not clock.stalled_since(clock())
        task.cancel()

    asyncio.run(scenario())


def test_a_failure_across_a_stall_is_no_evidence_against_its_node(bundle: Bundle) -> None:
    async def scenario() -> None:
        time, clock, task = ticking()
        await asyncio.sleep(0)
        node = Node(id="a", address="127.0.0.1:1", student=0)
        async with Fanout([node], bundle) as fanout:
            policy = policy_of({"a": 0})
            states = NodeStates(
                policy, fanout, Observers([]), lambda: None, clock=clock, event_clock=time, stalls=clock
            )
            for steps, state in (([0.1] * 12 + [3.0], "up"), ([0.1] * 12, "out")):
                asked_at, policy.nodes["a"].pending = clock(), 1
                for step in steps:
                    time.now += step
                    clock()
                states.learn(silence(node, clock() - asked_at), late=False)
                assert (policy.state("a"), policy.nodes["a"].pending) == (state, 0)
                time.now += 0.1
        task.cancel()

    asyncio.run(scenario())


def test_a_clock_that_is_not_kept_knows_no_stalls() -> None:
    time = Time()
    clock = StallClock(time)
    for later in (0.1, 10.0, 1000.0):
        time.now += later
        assert clock() == time.now
    assert clock.stalled_s == 0.0


@given(st.lists(st.floats(0, 5).filter(lambda step: abs(step - STALL_S) > 1e-6), max_size=30))
def test_the_time_never_goes_back_and_never_faster(steps: list[float]) -> None:
    async def scenario() -> None:
        time, clock, task = ticking()
        await asyncio.sleep(0)
        last = clock()
        for step in steps:
            time.now += step
            now = clock()
            passed = step if step <= STALL_S else TICK_S
            assert now - last == pytest.approx(passed, abs=1e-6)
            last = now
        task.cancel()

    asyncio.run(scenario())
