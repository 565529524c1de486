"""For whom the fan-out waits: hung nodes, replicas, early fusion, clients in a hurry."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.service import Aggregator
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from nonn.errors import QuorumError
from nonn.reliability.subsets import members
from nonn.rpc.v1 import inference_pb2 as pb
from tests.agreement import check_against_offline_fusion
from tests.fanout import PATIENT, Watcher, cluster, good_reply, slow
from tests.serving import TIMEOUT_S, running_node, until_async

NUM_DEVICES = 4


# Hung nodes


@pytest.mark.alone
def test_a_stopped_process_costs_one_deadline_for_all_requests_together_and_is_used_again_soon(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario(addresses: Any, pids: Any) -> Any:
        nodes = [Node(id=f"node-{i}", address=address, student=i) for i, address in enumerate(addresses)]
        config = PolicyConfig(deadline_s=2.0)
        async with Aggregator(bundle, nodes, config) as aggregator:
            assert (await aggregator.infer(inputs[:1])).answered.all()
            pids[1].send_signal(signal.SIGSTOP)
            start = time.monotonic()
            answers = await asyncio.gather(*(aggregator.infer(inputs[i : i + 1]) for i in range(20)))
            cost_s = time.monotonic() - start
            after = [await aggregator.infer(inputs[:1]) for _ in range(20)]
            pids[1].send_signal(signal.SIGCONT)
            start = time.monotonic()
            async with asyncio.timeout(TIMEOUT_S):
                while not (await aggregator.infer(inputs[:1])).answered.all():
                    pass
            return answers, cost_s, after, time.monotonic() - start

    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(running_node(bundle.path, i)) for i in range(NUM_DEVICES)]
        answers, cost_s, after, back_s = asyncio.run(
            scenario([line["address"] for _, line in started], [child for child, _ in started])
        )
    assert all(members(answer.mask) == (0, 2, 3) for answer in answers + after)
    for i, answer in enumerate(answers):
        check_against_offline_fusion(bundle, answer, slice(i, i + 1))
    assert 1.9 < cost_s < 4.0  # one deadline, not two
    assert sum(answer.latency_s > 1.9 for answer in after) == 0
    assert back_s < 2.0


@pytest.mark.alone
def test_who_waits_for_a_node_that_another_request_finds_hung_waits_no_longer(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario() -> Any:
        gate, config = asyncio.Event(), PolicyConfig(deadline_s=2.0)
        async with cluster(bundle, config, fakes={1: slow(bundle, gate, first=2)}) as aggregator:
            await aggregator.infer(inputs[:1])
            first = asyncio.create_task(aggregator.infer(inputs[:1]))
            await asyncio.sleep(1.2)
            second = await aggregator.infer(inputs[:1])
            gate.set()
            return await first, second

    first, second = asyncio.run(scenario())
    assert first.latency_s > 1.9
    assert members(second.mask) == (0, 2, 3)
    assert second.latency_s < 1.6  # what is left of the first one's deadline is 0.8


@pytest.mark.alone
def test_a_node_that_hangs_on_requests_of_the_usual_size_does_not_pass_its_probes(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario() -> Any:
        hangs, probed = True, list[int]()

        async def large(raw: Any, context: Any) -> Any:
            num_samples = pb.ModelInferRequest.FromString(raw).inputs[0].shape[0]
            probed.append(num_samples)
            if num_samples > 4 and hangs:
                await asyncio.Event().wait()
            return good_reply(bundle, raw)

        config = PolicyConfig(deadline_s=1.0, breaker_reset_s=0.05, early_loss=0.0)
        async with cluster(bundle, config, fakes={1: large}) as aggregator:
            answers = [await aggregator.infer(inputs[:6])]
            start = len(probed)
            while len(probed) < start + 3:
                answers.append(await aggregator.infer(inputs[:6]))
                await asyncio.sleep(0.01)
            state, hangs = aggregator.policy.state("node-1"), False
            async with asyncio.timeout(TIMEOUT_S):
                while not (await aggregator.infer(inputs[:6])).answered.all():
                    pass
            return answers, probed[start : start + 3], state

    answers, probed, state = asyncio.run(scenario())
    assert [answer.latency_s > 0.9 for answer in answers[:2]] == [True, False]
    assert sum(answer.latency_s > 0.9 for answer in answers) <= 2  # one; a busy machine may delay another
    assert probed == [6, 6, 6]
    assert state == "out"


# Replicas


def test_a_stopped_process_is_hedged_with_its_replica_and_nobody_is_missing(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario(addresses: Any, processes: Any) -> Any:
        nodes = [Node(id=f"node-{i}", address=address, student=i % 4) for i, address in enumerate(addresses)]
        watcher = Watcher()
        async with Aggregator(bundle, nodes, PATIENT, observers=[watcher]) as aggregator:
            for _ in range(10):
                assert (await aggregator.infer(inputs[:1])).answered.all()
            await asyncio.sleep(0)
            before = watcher.requests[-1]
            used = next(reply.node.id for reply in before.replies if reply.node.student == 0)
            processes[int(used[5:])].send_signal(signal.SIGSTOP)
            answer = await aggregator.infer(inputs[:3])
            await asyncio.sleep(0)
            return answer, watcher.requests[-1], used

    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(running_node(bundle.path, i % 4)) for i in range(5)]
        answer, event, used = asyncio.run(
            scenario([line["address"] for _, line in started], [child for child, _ in started])
        )
    assert answer.answered.all()
    assert not answer.degraded
    assert answer.failures == {}
    assert answer.latency_s < TIMEOUT_S / 4
    assert event.hedges >= 1
    assert used not in {reply.node.id for reply in event.replies}
    check_against_offline_fusion(bundle, answer, slice(3))


def test_a_replica_takes_over_from_a_node_that_answers_rubbish(bundle: Bundle, inputs: NDArray[Any]) -> None:
    asked = 0

    async def rubbish(raw: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        return good_reply(bundle, raw) if asked == 1 else b"\xff"

    async def scenario() -> Any:
        good = slow(bundle, asyncio.Event(), first=99)
        async with cluster(bundle, fakes={2: rubbish}, replicas={2: good}) as aggregator:
            # Whoever is asked first, within a few requests the turn is rubbish's.
            return [await aggregator.infer(inputs[:2]) for _ in range(5)]

    for answer in asyncio.run(scenario()):
        assert answer.answered.all()


def test_only_one_of_two_replicas_is_fused_and_the_other_comes_too_late(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> Any:
        gate, watcher = asyncio.Event(), Watcher()
        gated, other = slow(bundle, gate), slow(bundle, asyncio.Event(), first=99)
        async with cluster(bundle, fakes={0: gated}, replicas={0: other}, watcher=watcher) as aggregator:
            aggregator.policy.nodes["node-0b"].latencies.add(9.0)  # so that the gated one is asked first
            aggregator.policy.nodes["node-0b"].latencies.add(9.0)
            answer = await aggregator.infer(inputs[:1])
            logits = answer.logits.copy()
            gate.set()
            await until_async(lambda: watcher.late)
            return answer, logits, watcher

    answer, logits, watcher = asyncio.run(scenario())
    assert answer.answered.all()
    np.testing.assert_array_equal(answer.logits, logits)
    assert [event.node for event in watcher.late] == ["node-0"]
    assert [reply.node.student for reply in watcher.requests[0].replies].count(0) == 1


# Early fusion


def test_an_early_answer_says_so_and_learns_from_the_late_reply(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> Any:
        gate, watcher = asyncio.Event(), Watcher()
        config = PolicyConfig(deadline_s=TIMEOUT_S, accuracy_per_ms=0.5, quorum=3)
        async with cluster(bundle, config, fakes={1: slow(bundle, gate)}, watcher=watcher) as aggregator:
            answer = await aggregator.infer(inputs[:2])
            known = len(aggregator.policy.nodes["node-1"].latencies)
            gate.set()
            await until_async(lambda: watcher.late)
            return answer, watcher, known, len(aggregator.policy.nodes["node-1"].latencies), aggregator.policy

    answer, watcher, before, after, policy = asyncio.run(scenario())
    assert answer.early
    assert answer.degraded
    assert members(answer.mask) == (0, 2, 3)
    assert answer.latency_s < TIMEOUT_S / 4
    assert answer.failures == {"node-1": "not waited for: the gain in accuracy is not worth the wait"}
    assert answer.statuses == {"node-1": ReplyStatus.NOT_AWAITED}
    assert answer.parameters()["nonn_early"] is True
    check_against_offline_fusion(bundle, answer, slice(2))
    [event] = watcher.requests
    assert (event.early, event.outcome, event.mask) == (True, "degraded", 0b1101)
    assert set(event.features) == {0, 2, 3}
    assert (before, after) == (1, 2)
    assert policy.state("node-1") == "up"
    assert policy.nodes["node-1"].answered == 0


def test_a_node_that_early_fusion_does_not_wait_for_is_found_to_hang_all_the_same(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        config = PolicyConfig(deadline_s=1.0, accuracy_per_ms=1.0, quorum=3, breaker_reset_s=60.0)
        async with cluster(bundle, config, fakes={1: slow(bundle, gate)}) as aggregator:
            await aggregator.infer(inputs[:1])
            await until_async(lambda: aggregator.policy.state("node-1") == "out")
            gate.set()

    asyncio.run(scenario())


# Requests in pieces


def test_parts_with_different_devices_become_one_answer_of_those_that_are_in_all(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario() -> Any:
        fails = False

        async def at_times(raw: Any, context: Any) -> Any:
            return b"\xff" if fails else good_reply(bundle, raw)

        async with cluster(bundle, PATIENT, fakes={3: at_times}) as aggregator:
            parts = [await aggregator.infer(inputs[:5])]
            fails = True
            parts.append(await aggregator.infer(inputs[5:7]))
            whole, same = await aggregator.join(parts), await aggregator.join(parts[1:] * 2)
            few = [replace(part, answered=part.answered & (i == np.arange(4))) for i, part in enumerate(parts)]
            with pytest.raises(QuorumError, match="0 of 4 devices answered every part"):
                await aggregator.join(few)
            return parts, whole, same

    parts, whole, same = asyncio.run(scenario())
    assert [members(part.mask) for part in (*parts, whole, same)] == [(0, 1, 2, 3), *[(0, 1, 2)] * 3]
    check_against_offline_fusion(bundle, whole, slice(7))
    assert whole.degraded
    assert set(whole.failures) == {"node-3"}
    np.testing.assert_array_equal(same.logits, np.concatenate([parts[1].logits] * 2))


# Clients


def test_a_client_whose_deadline_leaves_no_time_is_told_so_and_nobody_is_asked(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario() -> Any:
        async with cluster(bundle) as aggregator:
            with pytest.raises(QuorumError, match="the client's deadline leaves 4 ms, of which fusing takes 5"):
                await aggregator.infer(inputs[:1], remaining_s=0.004)
            return [record.asked for record in aggregator.policy.nodes.values()]

    assert asyncio.run(scenario()) == [0] * NUM_DEVICES


def test_a_client_that_goes_away_takes_its_calls_with_it(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> None:
        cancelled = asyncio.Event()
        first = True

        async def hangs(raw: Any, context: Any) -> Any:
            nonlocal first
            if first:
                first = False
                return good_reply(bundle, raw)
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with cluster(bundle, fakes={1: hangs}) as aggregator:
            request = asyncio.create_task(aggregator.infer(inputs[:1]))
            await until_async(
                lambda: aggregator.policy.nodes["node-1"].pending and aggregator.policy.nodes["node-0"].asked
            )
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await asyncio.wait_for(cancelled.wait(), TIMEOUT_S)
            assert {record.pending for record in aggregator.policy.nodes.values()} == {0}
            assert aggregator.policy.state("node-1") == "up"

    asyncio.run(scenario())
