"""Requests of many clients travel together: the queue and its batches, with fan-outs of our own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonn.aggregator.batching import BatchConfig, Batcher
from nonn.aggregator.policy import PolicyConfig
from nonn.answer import ReplyStatus
from nonn.errors import InputError, OverloadError, QuorumError
from tests.batches import POLICY, Gate, answer_to, concatenated, settle
from tests.serving import TIMEOUT_S, until_async

requests = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 5), st.sampled_from([np.uint8, np.float32])),
        st.tuples(st.just("end"), st.integers(0, 3), st.none()),
        st.tuples(st.just("leave"), st.integers(0, 30), st.none()),
    ),
    max_size=40,
)


@settings(deadline=None)  # a busy machine is no failure
@given(events=requests, max_batch=st.integers(1, 12))
def test_in_any_order_of_arrivals_each_client_gets_its_own_rows(events: Any, max_batch: Any) -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate, BatchConfig(max_batch=max_batch, regroup_s=0), POLICY, join=concatenated)
        clients, count = [], 0
        for kind, number, dtype in events:
            if kind == "arrive":
                batch = np.arange(count, count + 4 * number).reshape(number, 4).astype(dtype)
                count += 4 * number
                clients.append((batch, asyncio.ensure_future(batcher.infer(batch))))
            elif kind == "leave" and clients:
                clients[number % len(clients)][1].cancel()
            elif kind == "end" and gate.open():
                gate.open()[number % len(gate.open())].set_result(None)
            await settle()
        while gate.open():
            gate.open()[0].set_result(None)
            await settle()
        for batch, client in clients:
            if not client.cancelled():
                alone = answer_to(batch)
                np.testing.assert_array_equal(client.result().logits, alone.logits)
                np.testing.assert_array_equal(client.result().confidence, alone.confidence)
        for batch, _, _ in gate.flights:
            assert max_batch == 1 or len(batch) <= max_batch
        assert batcher.held == 0

    asyncio.run(scenario())


def test_a_lone_request_is_sent_at_once_and_what_comes_meanwhile_travels_together() -> None:
    async def scenario() -> None:
        gate = Gate()
        batcher = Batcher(gate, BatchConfig(max_batch=8, regroup_s=0), POLICY, join=concatenated)
        sizes = []
        for wave in range(5):
            clients = [asyncio.ensure_future(batcher.infer(np.full((1, 4), i, np.uint8))) for i in range(9)]
            await settle()
            assert len(gate.open()) == 1, f"wave {wave}: one fan-out at a time"
            while gate.open():
                gate.open()[0].set_result(None)
                await settle()
            await asyncio.gather(*clients)
        sizes = [num_requests for _, num_requests, _ in gate.flights]
        assert sizes[0] == 1
        # The limit doubles as long as full batches come back quickly; the last wave is one alone and eight together.
        assert sizes[-2:] == [1, 8]

    asyncio.run(scenario())


class Clock:
    """Time that passes only when a cluster takes it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Slow:
    """A cluster with a device that answers after ``slowest_s``; an answer without it is degraded."""

    clock: Clock
    slowest_s: float
    policy: PolicyConfig
    gate: asyncio.Event
    asked: list[Any] = field(default_factory=list)

    async def __call__(self, batch: Any, remaining_s: Any, *, num_requests: Any, on_prompt: Any) -> Any:
        self.asked.append((num_requests, remaining_s))
        await asyncio.sleep(0)
        await self.gate.wait()
        left = np.inf if remaining_s is None else remaining_s
        patience_s = max(0.0, min(self.policy.deadline_s, left - self.policy.fusion_budget_s))
        self.clock.now += min(patience_s, self.slowest_s)
        if patience_s == 0:
            raise QuorumError("no node was asked")
        return answer_to(batch, degraded=patience_s < self.slowest_s)


def test_clients_that_travelled_together_are_waited_for_and_a_lone_one_never_waits() -> None:
    one = np.zeros((1, 4), np.uint8)

    async def scenario() -> Any:
        clock, gate = Clock(), Gate()
        batcher = Batcher(gate, BatchConfig(regroup_s=0.2), POLICY, clock, join=concatenated)
        batcher._limit.size = 8

        def ask(count: Any) -> Any:
            return [asyncio.ensure_future(batcher.infer(one)) for _ in range(count)]

        async def land() -> None:
            await until_async(gate.open)
            clock.now += 1.0
            gate.open()[0].set_result(None)
            await settle()

        clients = ask(4)
        await land()
        await land()  # the three that came meanwhile; the first does not come back
        clients += ask(2)
        await settle()
        assert not gate.open()  # the third may be on its way
        clients += ask(1)
        await settle()
        await land()
        clients += ask(1)
        await settle()
        assert not gate.open()
        await land()  # the other two do not come
        clients += ask(1)
        await settle()
        assert len(gate.open()) == 1
        await land()
        await asyncio.gather(*clients)
        return [num_requests for _, num_requests, _ in gate.flights]

    assert asyncio.run(scenario()) == [1, 3, 3, 1, 1]


def test_the_tightest_deadline_is_kept_and_costs_the_others_nothing() -> None:
    async def scenario() -> None:
        clock, policy, gate = Clock(), PolicyConfig(deadline_s=1000.0), asyncio.Event()
        cluster = Slow(clock, 500.0, policy, gate)
        batcher = Batcher(cluster, BatchConfig(max_batch=8), policy, clock, join=concatenated)
        batcher._limit.size = 8
        first = asyncio.ensure_future(batcher.infer(np.zeros((1, 4), np.uint8)))
        await settle()
        hurried = asyncio.ensure_future(batcher.infer(np.full((1, 4), 1, np.uint8), 600.0))
        hopeless = asyncio.ensure_future(batcher.infer(np.full((1, 4), 2, np.uint8), 400.0))
        patient = asyncio.ensure_future(batcher.infer(np.full((1, 4), 3, np.uint8)))
        other = asyncio.ensure_future(batcher.infer(np.full((1, 4), 4, np.uint8), 5000.0))
        await settle()
        gate.set()
        assert not (await first).degraded
        # That took 500 s. The 100 s that are left to one client are too few for a device: it is told in time, without.
        answer = await hurried
        assert answer.degraded
        assert 500.0 < answer.latency_s <= 600.0  # its time in the queue counts
        for client, value in ((patient, 3), (other, 4)):
            whole = await client
            assert not whole.degraded
            np.testing.assert_array_equal(whole.logits, answer_to(np.full((1, 4), value, np.uint8)).logits)
        with pytest.raises(OverloadError, match="waited 500"):
            await hopeless
        assert [num_requests for num_requests, _ in cluster.asked] == [1, 3, 2]

    asyncio.run(scenario())


def test_a_fan_out_that_hangs_holds_nobody_up() -> None:
    async def scenario() -> None:
        gate = Gate()
        # The usual time begins at a quarter of the deadline: twice that is soon over.
        batcher = Batcher(gate, BatchConfig(), PolicyConfig(deadline_s=0.2), join=concatenated)
        hangs = asyncio.ensure_future(batcher.infer(np.zeros((1, 4), np.uint8)))
        await settle()
        waits = asyncio.ensure_future(batcher.infer(np.ones((1, 4), np.uint8)))
        await until_async(lambda: len(gate.flights) == 2)
        gate.flights[1][2].set_result(None)
        assert (await waits).logits[0, 0] == 3
        assert not hangs.done()
        gate.flights[0][2].set_result(None)
        await hangs

    asyncio.run(scenario())


def test_batches_shrink_when_they_take_too_long_and_grow_again() -> None:
    async def scenario() -> None:
        clock, gate = Clock(), asyncio.Event()
        gate.set()
        cluster = Slow(clock, 1.0, POLICY, gate)
        batcher = Batcher(cluster, BatchConfig(max_batch=16), POLICY, clock, join=concatenated)

        async def crowd() -> None:
            await asyncio.gather(*(batcher.infer(np.zeros((1, 4), np.uint8)) for _ in range(65)))

        for _ in range(3):
            await crowd()
        assert batcher._limit.size == 16
        cluster.slowest_s = POLICY.deadline_s / 2
        await crowd()
        assert batcher._limit.size == 1
        cluster.slowest_s = 1.0
        await crowd()
        assert batcher._limit.size == 16

    asyncio.run(scenario())


def test_after_nodes_have_hung_batches_are_as_large_and_the_next_hang_holds_nobody_up() -> None:
    async def scenario() -> None:
        clock, policy, blocked = Clock(), PolicyConfig(deadline_s=1000.0), asyncio.Event()
        took_s, statuses = 0.01, dict[str, ReplyStatus]()
        asked = []

        async def infer(batch: Any, remaining_s: Any, *, num_requests: Any, on_prompt: Any) -> Any:
            asked.append(num_requests)
            clock.now += took_s
            if took_s == 0:
                await blocked.wait()
            return answer_to(batch, degraded=bool(statuses), statuses=statuses)

        batcher = Batcher(infer, BatchConfig(max_batch=16), policy, clock, join=concatenated)
        one = np.zeros((1, 4), np.uint8)
        for _ in range(40):
            await batcher.infer(one)
        batcher._limit.size = 16
        took_s, statuses = policy.deadline_s, {"node-1": ReplyStatus.SILENT}
        for _ in range(20):  # so many are under way when one node hangs for a whole deadline
            await batcher.infer(one)
        assert batcher._limit.size == 16
        took_s = 0
        hangs = asyncio.ensure_future(batcher.infer(one))
        await settle()
        waits = asyncio.ensure_future(batcher.infer(one))
        await until_async(lambda: len(asked) >= 62)
        blocked.set()
        await asyncio.gather(hangs, waits)

    asyncio.run(scenario())


def test_a_stragglers_delay_holds_up_no_batch_and_makes_none_smaller() -> None:
    async def scenario() -> None:
        clock, policy, arrived = Clock(), PolicyConfig(deadline_s=1000.0), asyncio.Event()
        asked = []

        async def infer(batch: Any, remaining_s: Any, *, num_requests: Any, on_prompt: Any) -> Any:
            asked.append(num_requests)
            await asyncio.sleep(0)
            clock.now += 900.0
            on_prompt(0.01)
            await arrived.wait()
            return answer_to(batch)

        batcher = Batcher(infer, BatchConfig(max_batch=16, regroup_s=0), policy, clock, join=concatenated)
        clients = [asyncio.ensure_future(batcher.infer(np.zeros((1, 4), np.uint8))) for _ in range(40)]
        await until_async(lambda: sum(asked) == 40)  # all are under way, though none has an answer
        arrived.set()
        await asyncio.gather(*clients)
        assert batcher._limit.size == 16

    asyncio.run(scenario())


def test_a_node_too_quick_for_a_straggler_delays_batches_and_makes_none_smaller() -> None:
    """Nine hundredths of the deadline, which every answer waits for: a batch takes as long, and there are no more."""

    async def scenario() -> None:
        clock, gate = Clock(), asyncio.Event()
        gate.set()
        cluster = Slow(clock, 0.001 * POLICY.deadline_s, POLICY, gate)
        batcher = Batcher(cluster, BatchConfig(max_batch=16, regroup_s=0), POLICY, clock, join=concatenated)

        async def crowd() -> int:
            before = len(cluster.asked)
            await asyncio.gather(*(batcher.infer(np.zeros((1, 4), np.uint8)) for _ in range(65)))
            return len(cluster.asked) - before

        usual = [await crowd() for _ in range(4)][-1]
        cluster.slowest_s = 0.09 * POLICY.deadline_s
        start = clock.now
        assert [await crowd() for _ in range(10)] == 10 * [usual]
        assert clock.now - start == pytest.approx(10 * usual * cluster.slowest_s)
        assert batcher._limit.size == 16

    asyncio.run(scenario())


def test_one_clients_bad_values_do_not_spoil_its_neighbours_answers() -> None:
    async def fussy(batch: Any, remaining_s: Any, *, num_requests: Any, on_prompt: Any) -> Any:
        await asyncio.sleep(0)
        if (batch > 100).any():
            if num_requests > 1 and batch[0, 0] > 0:  # some nodes refuse, others answer
                return answer_to(batch, degraded=True, statuses={"node-1": ReplyStatus.REFUSED})
            raise InputError("no node accepts this request")
        return answer_to(batch)

    async def scenario() -> Any:
        batcher = Batcher(fussy, BatchConfig(), POLICY, join=concatenated)
        batcher._limit.size = 8
        batches = [np.full((1, 4), value, np.float32) for value in (0, 1, 2, 1000, 3)]
        return await asyncio.gather(*map(batcher.infer, batches), return_exceptions=True)

    *_, bad, last = answers = asyncio.run(scenario())
    assert isinstance(bad, InputError)
    assert not any(answer.degraded for answer in answers if answer is not bad)
    assert last.logits[0, 0] == 7


def test_whatever_goes_wrong_between_queue_and_cluster_is_told_to_every_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(arrays: Any) -> None:
        raise MemoryError("not so much")

    async def scenario() -> Any:
        gate = Gate()
        batcher = Batcher(gate, BatchConfig(), POLICY, join=concatenated)
        batcher._limit.size = 8
        clients = [asyncio.ensure_future(batcher.infer(np.zeros((1, 4), np.uint8))) for _ in range(3)]
        await settle()
        monkeypatch.setattr(np, "concatenate", too_large)
        gate.open()[0].set_result(None)
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.gather(*clients, return_exceptions=True), batcher.held

    (first, *others), held = asyncio.run(scenario())
    assert first.logits[0, 0] == 1
    assert [type(error) for error in others] == [MemoryError] * 2
    assert held == 0


def test_in_uvloop_a_delay_of_less_than_its_clock_tells_is_kept() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> Any:
        gate = Gate()
        # Below half a millisecond uvloop calls back at once, by a handle that knows no time.
        batcher = Batcher(gate, BatchConfig(max_delay_s=4e-4), POLICY, join=concatenated)
        batcher._limit.size = 8
        clients = [asyncio.ensure_future(batcher.infer(np.zeros((1, 4), np.uint8))) for _ in range(3)]
        await until_async(lambda: gate.flights)
        gate.flights[0][2].set_result(None)
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*clients)
        return [num_requests for _, num_requests, _ in gate.flights]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()) == [3]
