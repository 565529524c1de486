"""Heads of answering sets, solved ahead of need and off the event loop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.fusion import head as head_module
from tests.fanout import cluster
from tests.serving import TIMEOUT_S

NUM_DEVICES = 4


def test_a_head_that_is_not_solved_yet_does_not_stop_the_event_loop(
    bundle: Bundle, inputs: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, solving = 0, []

    async def scenario() -> Any:
        nonlocal ticks
        async with cluster(bundle) as aggregator:
            await aggregator._solver._ahead
            solve = type(bundle.head)._solve

            def slowly(head: Any, mask: Any) -> Any:
                before = ticks
                start = time.monotonic()
                while ticks < before + 3 and time.monotonic() - start < TIMEOUT_S:
                    time.sleep(0.001)
                solving.append(ticks - before)
                return solve(head, mask)

            monkeypatch.setattr(type(bundle.head), "_solve", slowly)
            monkeypatch.setattr(bundle.head, "_solved", head_module._Solutions())
            request = asyncio.create_task(aggregator.infer(inputs[:1]))
            while not request.done():
                ticks += 1
                await asyncio.sleep(0)
            return await request

    assert asyncio.run(scenario()).answered.all()
    assert solving[0] >= 3


def test_heads_of_up_to_two_failures_are_solved_before_anybody_fails(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> None:
        async with cluster(bundle) as aggregator:
            await aggregator._solver._ahead

    asyncio.run(scenario())
    for mask in range(1, 1 << NUM_DEVICES):
        assert bundle.head.is_solved(mask) or mask.bit_count() == 1


def test_a_head_keeps_the_last_solutions_up_to_a_size(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh() -> Any:
        monkeypatch.setattr(bundle.head, "_solved", head_module._Solutions())
        return [bundle.head.weights(mask)[0] for mask in range(1, 16)]

    unbounded = fresh()
    monkeypatch.setattr(head_module, "MAX_SOLVED_BYTES", 2500)
    for weight, again in zip(unbounded, fresh(), strict=True):
        np.testing.assert_array_equal(weight, again)
    assert 1 <= len(bundle.head._solved) <= 3
    assert bundle.head.is_solved(15)
    assert not bundle.head.is_solved(1)
