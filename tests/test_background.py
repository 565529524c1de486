"""Background tasks: they never outlive their set, and a failure is noticed at once."""

from __future__ import annotations

import asyncio
import contextvars
import logging

import pytest

from nonn.telemetry.background import Background
from tests.observing import logged


async def fails() -> None:
    raise ValueError("broken")


def test_at_the_end_tasks_are_cancelled_and_awaited() -> None:
    ended = []

    async def runs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    async def scenario() -> None:
        async with Background() as tasks:
            tasks.start(runs(), "runs")
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert ended == ["cleaned up"]


def test_a_failure_is_logged_at_once_with_the_name_of_the_task(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> int:
        async with Background() as tasks:
            task = tasks.start(fails(), "expiry of leases")
            await asyncio.wait({task})
            await asyncio.sleep(0)
            return len(logged(caplog))

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(scenario()) == 1
    (record,) = logged(caplog)
    assert record.getMessage() == "expiry of leases failed: broken"
    assert record.exc_info


def test_one_failure_leaves_the_other_tasks_alone() -> None:
    async def scenario() -> bool:
        async with Background() as tasks:
            other = tasks.start(asyncio.sleep(0.001), "other")
            await asyncio.wait({tasks.start(fails(), "fails")})
            await other
            return not other.cancelled()

    assert asyncio.run(scenario())


def test_a_task_that_is_needed_ends_the_block_which_raises_its_error() -> None:
    async def scenario() -> None:
        stop = asyncio.Event()
        async with Background(stop.set) as tasks:
            tasks.start(fails(), "fails")
            await stop.wait()

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(scenario())


def test_an_error_of_the_block_itself_comes_first() -> None:
    async def scenario() -> None:
        async with Background(lambda: None) as tasks:
            await asyncio.wait({tasks.start(fails(), "fails")})
            raise KeyError("own")

    with pytest.raises(KeyError):
        asyncio.run(scenario())


def test_a_task_runs_in_the_context_that_it_is_given() -> None:
    variable = contextvars.ContextVar("variable", default="outside")
    seen = []

    async def reads() -> None:
        seen.append(variable.get())

    async def scenario() -> None:
        context = contextvars.copy_context()
        context.run(variable.set, "inside")
        async with Background() as tasks:
            await tasks.start(reads(), "reads", context=context)

    asyncio.run(scenario())
    assert seen == ["inside"]
