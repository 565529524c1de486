"""Requests of many clients travel together: the queue and its batches, with fan-outs of our own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonn.aggregator.batching import BatchConfig, Batcher
from nonn.aggregator.policy import PolicyConfig
from nonn.answer import Answer, ReplyStatus
from nonn.errors import ConfigError, InputError, OverloadError, QuorumError
from tests.serving import TIMEOUT_S, until_async

NUM_DEVICES = 4
# A quarter of this is how long a fan-out may hold up the next one: no test takes as long.
POLICY = PolicyConfig(deadline_s=1000.0)


def answer_to(batch: Any, **changes: Any) -> Any:
    """What a cluster might make of a batch: rows depend on their own sample alone."""
    logits = batch.reshape(len(batch), -1)[:, :3].astype(np.float32) * 2 + 1
    values: dict[str, Any] = {"degraded": False, "bundle": "b", "expected_accuracy": 0.9, "failures": {}} | changes
    return Answer(logits=logits, confidence=logits.max(axis=1), answered=np.ones(4, np.bool_), **values)


async def concatenated(answers: Any) -> Any:
    """What ``Aggregator.join`` does if the same devices have answered all parts."""
    logits = np.concatenate([answer.logits for answer in answers])
    return replace(answers[0], logits=logits, confidence=np.concatenate([a.confidence for a in answers]))


async def settle() -> None:
    """Lets everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class Gate:
    """A cluster whose fan-outs end when they are told to."""

    flights: list[Any] = field(default_factory=list)

    async def __call__(self, batch: Any, remaining_s: Any, *, num_requests: Any, on_prompt: Any) -> Any:
        done = asyncio.get_running_loop().create_future()
        self.flights.append((batch, num_requests, done))
        await done
        return answer_to(batch)

    def open(self) -> Any:
        return [done for _, _, done in self.flights if not done.done()]


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
