"""Large requests in pieces, and a full queue, with fan-outs of our own."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from nonn.aggregator.batching import BatchConfig, Batcher
from nonn.aggregator.policy import PolicyConfig
from nonn.errors import ConfigError, InputError, OverloadError
from tests.batches import POLICY, Gate, answer_to, concatenated, settle
from tests.serving import until_async


def test_a_large_request_is_sent_in_pieces_between_the_others_and_answered_as_one() -> None:
    async def scenario() -> Any:
        gate = Gate()
        batcher = Batcher(gate, BatchConfig(max_batch=8, regroup_s=0), POLICY, join=concatenated)
        batcher._limit.size = 8
        large = np.arange(4 * 30).reshape(30, 4).astype(np.uint8)
        greedy = asyncio.ensure_future(batcher.infer(large, None, "greedy"))
        others = [asyncio.ensure_future(batcher.infer(np.full((1, 4), i, np.uint8), None, f"c{i}")) for i in range(6)]
        sizes = []
        while not greedy.done():
            await until_async(lambda: gate.open() or greedy.done())
            for done in gate.open():
                sizes.append((len(gate.flights[-1][0]), sum(other.done() for other in others)))
                done.set_result(None)
            await settle()
        np.testing.assert_array_equal((await greedy).logits, answer_to(large).logits)
        return sizes, [(await other).logits[0, 0] for other in others]

    sizes, answers = asyncio.run(scenario())
    assert answers == [2 * i + 1 for i in range(6)]
    assert max(size for size, _ in sizes) <= 8
    assert sizes[2][1] == 6  # all others are answered with the second batch


def test_a_piece_that_fails_fails_its_request_and_no_other() -> None:
    async def scenario() -> Any:
        async def infer(batch: Any, remaining_s: Any, *, num_requests: Any, on_prompt: Any) -> Any:
            await asyncio.sleep(0)
            if (batch == 200).any():
                raise InputError("no node accepts this request")
            return answer_to(batch)

        batcher = Batcher(infer, BatchConfig(max_batch=4), POLICY, join=concatenated)
        large = np.arange(9, dtype=np.float32)[:, None].repeat(4, axis=1)
        large[7] = 200
        calls = [batcher.infer(large, None, "large"), *(batcher.infer(large[:1], None, f"{i}") for i in range(5))]
        return await asyncio.gather(*calls, return_exceptions=True), batcher.held

    (bad, *good), held = asyncio.run(scenario())
    assert isinstance(bad, InputError)
    assert [answer.logits[0, 0] for answer in good] == [1] * 5
    assert held == 0


def test_batches_are_as_large_as_the_slowest_node_can_take_within_its_patience() -> None:
    async def scenario() -> Any:
        gate, tolerable = Gate(), []

        def sample_s(tolerable_s: float) -> float:
            tolerable.append(tolerable_s)
            return 0.02

        config = PolicyConfig(deadline_s=1.0)
        batcher = Batcher(gate, BatchConfig(max_batch=64), config, join=concatenated, sample_s=sample_s)
        batcher._limit.size = 64
        answer = asyncio.ensure_future(batcher.infer(np.zeros((20, 4), np.uint8)))
        while not answer.done():
            await until_async(lambda: gate.open() or answer.done())
            for done in gate.open():
                done.set_result(None)
            await settle()
        return [len(batch) for batch, _, _ in gate.flights], [num for _, num, _ in gate.flights], tolerable[0]

    sizes, num_requests, tolerable_s = asyncio.run(scenario())
    assert sizes == [5, 5, 5, 5]  # 0.1 s is a tenth of the deadline
    assert num_requests == [1, 0, 0, 0]  # one request
    assert tolerable_s == pytest.approx(0.1 / 16)


def test_a_request_in_pieces_has_its_rows_in_order_whichever_piece_is_answered_first() -> None:
    async def scenario() -> None:
        gates, num_asked = list[asyncio.Event](), 0

        async def infer(batch: Any, remaining_s: Any, *, num_requests: Any, on_prompt: Any) -> Any:
            nonlocal num_asked
            gates.append(gate := asyncio.Event())
            num_asked += len(batch)
            await asyncio.sleep(0)
            on_prompt(0.01)  # the next piece does not wait for this one
            await gate.wait()
            return answer_to(batch)

        batcher = Batcher(infer, BatchConfig(max_batch=4, regroup_s=0), POLICY, join=concatenated)
        batch = np.arange(36, dtype=np.uint8).reshape(9, 4)
        client = asyncio.ensure_future(batcher.infer(batch))
        await until_async(lambda: num_asked == len(batch))
        assert len(gates) > 2
        for gate in reversed(gates):
            gate.set()
            await settle()
        np.testing.assert_array_equal((await client).logits, answer_to(batch).logits)

    asyncio.run(scenario())


def test_who_waits_with_the_most_loses_its_newest_request_when_the_queue_is_full() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate, BatchConfig(max_queue=10, max_samples=4), POLICY, join=concatenated)
        one, four = np.zeros((1, 4), np.uint8), np.zeros((4, 4), np.uint8)
        greedy = [asyncio.ensure_future(batcher.infer(one, None, "greedy"))]
        await settle()
        greedy += [asyncio.ensure_future(batcher.infer(four, None, "greedy")) for _ in range(2)]
        await settle()
        modest = asyncio.ensure_future(batcher.infer(four[:2], None, "modest"))
        await settle()
        with pytest.raises(OverloadError, match=r"--max-queue"):
            await greedy[-1]
        with pytest.raises(OverloadError, match=r"--max-queue"):
            await batcher.infer(four, None, "greedy")
        while gate.open():
            gate.open()[0].set_result(None)
            await settle()
        assert (await modest).logits.shape == (2, 3)
        assert [(await client).logits.shape for client in greedy[:2]] == [(1, 3), (4, 3)]
        assert batcher.held == 0

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_and_names_its_limit() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate, BatchConfig(max_queue=5, max_samples=3), POLICY, join=concatenated)
        clients = [asyncio.ensure_future(batcher.infer(np.zeros((2, 4), np.uint8))) for _ in range(2)]
        await settle()
        with pytest.raises(OverloadError, match=r"4 samples are waiting for an answer, the limit is 5 \(--max-queue\)"):
            await batcher.infer(np.zeros((2, 4), np.uint8))
        clients[1].cancel()  # gives its place back
        await settle()
        clients[1] = asyncio.ensure_future(batcher.infer(np.zeros((3, 4), np.uint8)))
        while not all(client.done() for client in clients):
            await until_async(lambda: gate.open() or clients[1].done())
            for done in gate.open():
                done.set_result(None)
            await settle()
        assert batcher.held == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_batch": 0}, "max_batch = 0"),
        ({"max_delay_s": -1.0}, "max_delay_s = -1.0"),
        ({"max_queue": 10, "max_samples": 20}, "max_queue = 10: less than max_samples = 20"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: Any, text: Any) -> None:
    with pytest.raises(ConfigError, match=text):
        BatchConfig(**options)
