"""Heads of answering sets, solved ahead of need and off the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from nonn.fusion import LinearHead
from nonn.fusion import linear as linear_module
from nonn.reliability.subsets import members
from tests.fanout import PATIENT, cluster
from tests.serving import TIMEOUT_S

NUM_DEVICES = 4
ALL = (1 << NUM_DEVICES) - 1


def linear(bundle: Bundle) -> LinearHead:
    assert isinstance(bundle.head, LinearHead)
    return bundle.head


def test_a_head_that_is_not_solved_yet_does_not_stop_the_event_loop(
    bundle: Bundle, inputs: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, solving = 0, []

    async def scenario() -> Any:
        nonlocal ticks
        async with cluster(bundle, dataclasses.replace(PATIENT, fusion_budget_s=TIMEOUT_S)) as aggregator:
            await aggregator._solver._ahead
            solve = type(linear(bundle))._solve

            def slowly(head: Any, mask: Any) -> Any:
                before = ticks
                start = time.monotonic()
                while ticks < before + 3 and time.monotonic() - start < TIMEOUT_S:
                    time.sleep(0.001)
                solving.append(ticks - before)
                return solve(head, mask)

            monkeypatch.setattr(type(bundle.head), "_solve", slowly)
            monkeypatch.setattr(bundle.head, "_solved", linear_module._Solutions())
            request = asyncio.create_task(aggregator.infer(inputs[:1]))
            while not request.done():
                ticks += 1
                await asyncio.sleep(0)
            return await request

    assert asyncio.run(scenario()).answered.all()
    assert solving[0] >= 3


class _Stuck(threading.Event):
    """Releases a solution that is withheld; ``entered`` is set when it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()


@pytest.fixture
def stuck(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Stuck]:
    """The head of all devices is not solved before ``set``; those of {0, 1, 2}, {0, 2, 3} and {1} are."""
    head, released = linear(bundle), _Stuck()
    solve = type(head)._solve

    def late(self: Any, mask: int) -> Any:
        if mask == ALL:
            released.entered.set()
            assert released.wait(TIMEOUT_S)
        return solve(self, mask)

    monkeypatch.setattr(head, "_solved", linear_module._Solutions())
    monkeypatch.setattr(type(head), "_solve", late)
    for mask in (0b0111, 0b1101, 0b0010):
        head.solve(mask)
    yield released
    released.set()


def test_a_subset_is_fused_and_stated_while_the_head_of_all_is_not_solved(
    bundle: Bundle, inputs: NDArray[Any], stuck: _Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = max((0b0111, 0b1101), key=lambda mask: (bundle.table.accuracy[mask], mask))

    async def scenario() -> tuple[Any, Any]:
        # The start does not wait for the head of all devices, which only this test withholds.
        monkeypatch.setattr("nonn.aggregator.solver.HeadSolver.prepare", lambda *_: asyncio.sleep(0))
        monkeypatch.setattr("nonn.aggregator.solver.HeadSolver.look_ahead", lambda *_: None)
        async with cluster(bundle) as aggregator:
            first = await aggregator.infer(inputs[:5])
            stuck.set()
            await aggregator._solver.ensure(ALL)
            return first, await aggregator.infer(inputs[:5])

    first, second = asyncio.run(scenario())
    assert first.mask == best
    assert first.degraded
    assert first.expected_accuracy == bundle.table.accuracy[best]
    (left_out,) = members(ALL & ~best)
    assert first.statuses == {f"node-{left_out}": ReplyStatus.NOT_FUSED}
    assert "not solved yet" in first.failures[f"node-{left_out}"]
    features = {i: bundle.features[0][i][:5] for i in members(best)}
    np.testing.assert_allclose(first.logits, bundle.head.logits(features), atol=1e-4)
    assert second.answered.all()
    assert not second.failures


def test_a_quorum_that_no_solved_subset_has_is_waited_for(
    bundle: Bundle, inputs: NDArray[Any], stuck: _Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> Any:
        monkeypatch.setattr("nonn.aggregator.solver.HeadSolver.prepare", lambda *_: asyncio.sleep(0))
        monkeypatch.setattr("nonn.aggregator.solver.HeadSolver.look_ahead", lambda *_: None)
        async with cluster(bundle, dataclasses.replace(PATIENT, quorum=4, fusion_budget_s=0.0)) as aggregator:
            request = asyncio.create_task(aggregator.infer(inputs[:1]))
            assert await asyncio.to_thread(stuck.entered.wait, TIMEOUT_S)
            stuck.set()
            return await request

    assert asyncio.run(scenario()).answered.all()


def test_every_subset_of_few_devices_is_solved_before_anybody_fails(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> None:
        async with cluster(bundle) as aggregator:
            for device in range(NUM_DEVICES):
                assert bundle.head.is_solved(1 << device)  # before the first request: any set then has an answer
            await aggregator._solver._ahead

    asyncio.run(scenario())
    assert all(bundle.head.is_solved(mask) for mask in range(1, 1 << NUM_DEVICES))


def test_solving_ahead_stops_where_the_cache_is_full(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    head = linear(bundle)
    monkeypatch.setattr(head, "_solved", linear_module._Solutions())
    few = [ALL, *(1 << i for i in range(NUM_DEVICES))]
    monkeypatch.setattr(linear_module, "MAX_SOLVED_BYTES", sum(map(head.solved_bytes, few)))

    async def scenario() -> None:
        async with cluster(bundle) as aggregator:
            await aggregator._solver._ahead

    asyncio.run(scenario())
    assert sorted(head.solved()) == sorted(few)


def test_a_head_keeps_the_last_solutions_up_to_a_size(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    head = linear(bundle)

    def fresh() -> Any:
        monkeypatch.setattr(head, "_solved", linear_module._Solutions())
        return [head.weights(mask)[0] for mask in range(1, 16)]

    unbounded = fresh()
    monkeypatch.setattr(linear_module, "MAX_SOLVED_BYTES", 2500)
    for weight, again in zip(unbounded, fresh(), strict=True):
        np.testing.assert_array_equal(weight, again)
    assert 1 <= len(head.solved()) <= 3
    assert head.is_solved(15)
    assert not head.is_solved(1)
