"""The fan-out under faults: hung nodes, replicas, early fusion, foreign nodes, nodes that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest

from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.reply import Reply
from nonn.aggregator.service import Aggregator
from nonn.errors import ConfigError, InputError, QuorumError
from nonn.fusion import head as head_module
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.subsets import members
from nonn.wire import add_tensors, read_tensors
from tests.serving import TIMEOUT_S, fake_node, running_node, serving
from tests.test_aggregator import check_against_offline_fusion, good_reply, student
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 4
PATIENT = PolicyConfig(deadline_s=TIMEOUT_S)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return toy_bundle(tmp_path_factory.mktemp("fanout") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture(scope="module")
def inputs():
    return toy_data(200, seed=3)[0]


class Watcher:
    """An observer that remembers everything."""

    def __init__(self):
        self.requests, self.states, self.late = [], [], []
        self.on_request, self.on_state, self.on_late = self.requests.append, self.states.append, self.late.append


@contextlib.asynccontextmanager
async def cluster(bundle, config=PATIENT, *, fakes=None, replicas=None, watcher=None, **keys):
    """Real students in this process; ``fakes`` take the place of some, ``replicas`` are further fakes of a student."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for i in range(NUM_DEVICES):
            fake = (fakes or {}).get(i)
            server = fake_node(fake) if fake else serving(student(bundle, i))
            nodes.append(Node(id=f"node-{i}", address=await stack.enter_async_context(server), student=i))
        for i, fake in (replicas or {}).items():
            address = await stack.enter_async_context(fake_node(fake))
            nodes.append(Node(id=f"node-{i}b", address=address, student=i))
        nodes = [replace(node, **keys.get(node.id.replace("-", "_"), {})) for node in nodes]
        observers = [watcher] if watcher else []
        yield await stack.enter_async_context(Aggregator(bundle, nodes, config, observers=observers))


def slow(bundle, gate, first=1):
    """A node that answers its first requests at once and later ones when the gate opens."""
    asked = 0

    async def behaviour(raw, context):
        nonlocal asked
        asked += 1
        if asked > first:
            await gate.wait()
        return good_reply(bundle, raw)

    return behaviour


async def soon(condition):
    """Waits until something has come about in the background."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < TIMEOUT_S
        await asyncio.sleep(0.005)


# Hung nodes


def test_a_stopped_process_costs_one_deadline_for_all_requests_together_and_is_used_again_soon(bundle, inputs):
    async def scenario(addresses, pids):
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
            while not (await aggregator.infer(inputs[:1])).answered.all():
                assert time.monotonic() - start < TIMEOUT_S
            return answers, cost_s, after, time.monotonic() - start

    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(running_node(bundle.path, i)) for i in range(NUM_DEVICES)]
        answers, cost_s, after, back_s = asyncio.run(
            scenario([line["address"] for _, line in started], [child for child, _ in started])
        )
    assert all(members(answer.mask) == (0, 2, 3) for answer in answers + after)
    for i, answer in enumerate(answers):
        check_against_offline_fusion(bundle, answer, slice(i, i + 1))
    assert 1.9 < cost_s < 3.8
    assert sum(answer.latency_s > 1.9 for answer in after) == 0
    assert back_s < 2.0


def test_who_waits_for_a_node_that_another_request_finds_hung_waits_no_longer(bundle, inputs):
    async def scenario():
        gate, config = asyncio.Event(), PolicyConfig(deadline_s=1.0)
        async with cluster(bundle, config, fakes={1: slow(bundle, gate, first=2)}) as aggregator:
            await aggregator.infer(inputs[:1])
            first = asyncio.create_task(aggregator.infer(inputs[:1]))
            await asyncio.sleep(0.6)
            second = await aggregator.infer(inputs[:1])
            gate.set()
            return await first, second

    first, second = asyncio.run(scenario())
    assert first.latency_s > 0.9
    assert members(second.mask) == (0, 2, 3)
    assert second.latency_s < 0.8


# Replicas


def test_a_stopped_process_is_hedged_with_its_replica_and_nobody_is_missing(bundle, inputs):
    async def scenario(addresses, processes):
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


def test_a_replica_takes_over_from_a_node_that_answers_rubbish(bundle, inputs):
    asked = 0

    async def rubbish(raw, context):
        nonlocal asked
        asked += 1
        return good_reply(bundle, raw) if asked == 1 else b"\xff"

    async def scenario():
        good = slow(bundle, asyncio.Event(), first=99)
        async with cluster(bundle, fakes={2: rubbish}, replicas={2: good}) as aggregator:
            # Whoever is asked first, within a few requests the turn is rubbish's.
            return [await aggregator.infer(inputs[:2]) for _ in range(5)]

    for answer in asyncio.run(scenario()):
        assert answer.answered.all()


def test_only_one_of_two_replicas_is_fused_and_the_other_comes_too_late(bundle, inputs):
    async def scenario():
        gate, watcher = asyncio.Event(), Watcher()
        gated, other = slow(bundle, gate), slow(bundle, asyncio.Event(), first=99)
        async with cluster(bundle, fakes={0: gated}, replicas={0: other}, watcher=watcher) as aggregator:
            aggregator.policy.nodes["node-0b"].latencies.add(9.0)  # so that the gated one is asked first
            aggregator.policy.nodes["node-0b"].latencies.add(9.0)
            answer = await aggregator.infer(inputs[:1])
            logits = answer.logits.copy()
            gate.set()
            await soon(lambda: watcher.late)
            return answer, logits, watcher

    answer, logits, watcher = asyncio.run(scenario())
    assert answer.answered.all()
    np.testing.assert_array_equal(answer.logits, logits)
    assert [event.node for event in watcher.late] == ["node-0"]
    assert [reply.node.student for reply in watcher.requests[0].replies].count(0) == 1


# Early fusion


def test_an_early_answer_says_so_and_learns_from_the_late_reply(bundle, inputs):
    async def scenario():
        gate, watcher = asyncio.Event(), Watcher()
        config = PolicyConfig(deadline_s=TIMEOUT_S, accuracy_per_ms=0.5, quorum=3)
        async with cluster(bundle, config, fakes={1: slow(bundle, gate)}, watcher=watcher) as aggregator:
            answer = await aggregator.infer(inputs[:2])
            known = len(aggregator.policy.nodes["node-1"].latencies)
            gate.set()
            await soon(lambda: watcher.late)
            return answer, watcher, known, len(aggregator.policy.nodes["node-1"].latencies), aggregator.policy

    answer, watcher, before, after, policy = asyncio.run(scenario())
    assert answer.early
    assert answer.degraded
    assert members(answer.mask) == (0, 2, 3)
    assert answer.latency_s < TIMEOUT_S / 4
    assert answer.failures == {"node-1": "not waited for: it would cost more time than it is worth"}
    assert answer.parameters()["nonn_early"] is True
    check_against_offline_fusion(bundle, answer, slice(2))
    [event] = watcher.requests
    assert (event.early, event.outcome, event.mask) == (True, "degraded", 0b1101)
    assert set(event.features) == {0, 2, 3}
    assert (before, after) == (1, 2)
    assert policy.state("node-1") == "up"
    assert policy.nodes["node-1"].answered == 0


def test_a_node_that_early_fusion_does_not_wait_for_is_found_to_hang_all_the_same(bundle, inputs):
    async def scenario():
        gate = asyncio.Event()
        config = PolicyConfig(deadline_s=0.3, accuracy_per_ms=1.0, quorum=3, breaker_reset_s=60.0)
        async with cluster(bundle, config, fakes={1: slow(bundle, gate)}) as aggregator:
            await aggregator.infer(inputs[:1])
            await soon(lambda: aggregator.policy.state("node-1") == "out")
            gate.set()

    asyncio.run(scenario())


# What nodes send


@pytest.mark.parametrize(("size", "error"), [(100_000, "bad reply: oversized: "), (70_000_000, "RESOURCE_EXHAUSTED")])
def test_an_oversized_reply_is_its_nodes_failure(bundle, inputs, size, error):
    async def large(raw, context):
        response = pb.ModelInferResponse.FromString(good_reply(bundle, raw))
        response.parameters["padding"].string_param = "x" * size
        return response.SerializeToString()

    async def scenario():
        async with cluster(bundle, fakes={1: large}) as aggregator:
            return await aggregator.infer(inputs[:2])

    answer = asyncio.run(scenario())
    assert members(answer.mask) == (0, 2, 3)
    assert answer.failures["node-1"].startswith(error)


def test_a_request_that_every_node_finds_invalid_is_the_clients_fault_and_switches_nobody_off(bundle, inputs):
    asked = 0

    async def picky(raw, context):
        nonlocal asked
        asked += 1
        if asked > NUM_DEVICES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "features are not finite")
        return good_reply(bundle, raw)

    async def scenario():
        watcher = Watcher()
        async with cluster(bundle, fakes=dict.fromkeys(range(NUM_DEVICES), picky), watcher=watcher) as aggregator:
            for _ in range(5):
                with pytest.raises(InputError, match=r"no node takes this request; node-\d: INVALID_ARGUMENT"):
                    await aggregator.infer(inputs[:1])
            assert {aggregator.policy.state(node.id) for node in aggregator.nodes} == {"up"}
            assert {record.pending for record in aggregator.policy.nodes.values()} == {0}
            assert [event.outcome for event in watcher.requests] == ["invalid"] * 5

    asyncio.run(scenario())


def foreign(bundle, seen, **wrong):
    """An ordinary server of the protocol: its own names, float32 inputs, and it knows no bundle."""

    async def behaviour(raw, context):
        request = pb.ModelInferRequest.FromString(raw)
        seen.append(request)
        inputs = read_tensors(request.inputs, request.raw_input_contents)["image"]
        features = np.maximum(inputs.reshape(len(inputs), -1) @ np.ones((64, 4), np.float32), 0)
        response = pb.ModelInferResponse(model_name="resnet", id=wrong.get("id", request.id))
        outputs = {"pooled": features * wrong.get("scale", 1.0)}
        add_tensors(response.outputs, response.raw_output_contents, outputs)
        return response.SerializeToString()

    return behaviour


AS_FOREIGN = {"foreign": True, "model": "resnet", "input": "image", "output": "pooled"}


def test_an_ordinary_server_stands_in_for_a_node_under_its_own_names(bundle, inputs):
    async def scenario():
        seen = []
        async with cluster(bundle, fakes={1: foreign(bundle, seen)}, node_1=AS_FOREIGN) as aggregator:
            return await aggregator.infer(inputs[:3]), seen[-1]

    answer, request = asyncio.run(scenario())
    assert answer.answered.all()
    assert request.model_name == "resnet"
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [("image", "FP32", [3, 1, 8, 8])]
    assert [output.name for output in request.outputs] == ["pooled"]
    assert "nonn_bundle" not in request.parameters


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"id": "7777"}, "bad reply: to request '7777'"),
        ({"scale": np.float32("nan")}, "bad reply: pooled hold NaN or infinity"),
        ({"scale": np.float64(1)}, "bad reply: float64 pooled"),
    ],
)
def test_a_foreign_node_is_vouched_for_and_still_checked(bundle, inputs, wrong, error):
    async def scenario():
        async with cluster(bundle, fakes={1: foreign(bundle, [], **wrong)}, node_1=AS_FOREIGN) as aggregator:
            return await aggregator.infer(inputs[:1])

    answer = asyncio.run(scenario())
    assert members(answer.mask) == (0, 2, 3)
    assert answer.failures["node-1"].startswith(error)


# Clients


def test_a_client_whose_deadline_leaves_no_time_is_told_so_and_nobody_is_asked(bundle, inputs):
    async def scenario():
        async with cluster(bundle) as aggregator:
            with pytest.raises(QuorumError, match="the client's deadline leaves 4 ms, of which fusing takes 5"):
                await aggregator.infer(inputs[:1], remaining_s=0.004)
            return [record.asked for record in aggregator.policy.nodes.values()]

    assert asyncio.run(scenario()) == [0] * NUM_DEVICES


def test_a_client_that_goes_away_takes_its_calls_with_it(bundle, inputs):
    async def scenario():
        cancelled = asyncio.Event()
        first = True

        async def hangs(raw, context):
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
            await soon(lambda: aggregator.policy.nodes["node-1"].pending and aggregator.policy.nodes["node-0"].asked)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await asyncio.wait_for(cancelled.wait(), TIMEOUT_S)
            assert {record.pending for record in aggregator.policy.nodes.values()} == {0}
            assert aggregator.policy.state("node-1") == "up"

    asyncio.run(scenario())


# Nodes that come and go


def test_nodes_join_and_leave_under_load_and_no_request_fails(bundle, inputs):
    async def scenario():
        watcher, answers = Watcher(), []
        async with cluster(bundle, watcher=watcher) as aggregator:
            node = aggregator.nodes[2]
            stop = False

            async def load(offset):
                while not stop:
                    answers.append((offset, await aggregator.infer(inputs[offset : offset + 1])))

            clients = [asyncio.create_task(load(k)) for k in range(4)]
            for _ in range(5):
                await aggregator.remove_node("node-2", "left")
                done = len(answers)
                await soon(lambda done=done: len(answers) > done + 8)
                without = answers[-1][1]
                await aggregator.add_node(node)
                done = len(answers)
                await soon(lambda done=done: len(answers) > done + 8)
                assert members(without.mask) == (0, 1, 3)
                assert answers[-1][1].answered.all()
            stop = True
            await asyncio.gather(*clients)
            with pytest.raises(ConfigError, match="node 'node-2' is there already"):
                await aggregator.add_node(node)
            with pytest.raises(ConfigError, match="student 9; the bundle has 0 to 3"):
                await aggregator.add_node(replace(node, id="x", student=9))
            with pytest.raises(ConfigError, match="there is no node 'x'"):
                await aggregator.remove_node("x")
        return answers, watcher

    answers, watcher = asyncio.run(scenario())
    for offset, answer in answers:
        check_against_offline_fusion(bundle, answer, slice(offset, offset + 1))
    changes = [(event.before, event.after, event.reason) for event in watcher.states if event.node == "node-2"]
    assert changes == [("up", "", "left"), ("", "up", "joined")] * 5


def test_a_cluster_without_nodes_says_so(bundle, inputs):
    async def scenario():
        async with Aggregator(bundle, []) as aggregator:
            assert not aggregator.ready
            with pytest.raises(QuorumError, match=r"missing: no node is in the cluster$"):
                await aggregator.infer(inputs[:1])

    asyncio.run(scenario())


def test_below_the_quorum_students_that_no_node_runs_are_named(bundle, inputs):
    async def scenario():
        async with cluster(bundle, replace(PATIENT, quorum=3)) as aggregator:
            await aggregator.remove_node("node-1")
            await aggregator.remove_node("node-3")
            with pytest.raises(QuorumError, match=r"missing: no node in the cluster runs student 1, 3$"):
                await aggregator.infer(inputs[:1])

    asyncio.run(scenario())


def test_a_reply_of_a_node_that_has_left_is_no_news(bundle, inputs):
    async def scenario():
        watcher = Watcher()
        async with cluster(bundle, watcher=watcher) as aggregator:
            gone = aggregator.nodes[2]
            await aggregator.remove_node(gone.id)
            aggregator._learn(Reply(gone, None, "", 0.1), True)
            aggregator._learn(Reply(gone, None, "bad request", 0.1, blameless=True), True)
        assert watcher.late == []
        assert [event.after for event in watcher.states] == [""]

    asyncio.run(scenario())


def test_an_observer_that_fails_costs_no_answer(bundle, inputs, caplog):
    class Broken(Watcher):
        def __init__(self):
            def fail(event):
                raise RuntimeError("no disk")

            self.on_request = self.on_state = self.on_late = fail

    async def scenario():
        async with cluster(bundle, watcher=Broken()) as aggregator:
            answer = await aggregator.infer(inputs[:1])
            await asyncio.sleep(0)
            return answer

    assert asyncio.run(scenario()).answered.all()
    assert "an observer failed at RequestEvent" in caplog.text


# Heads


def test_a_head_that_is_not_solved_yet_does_not_stop_the_event_loop(bundle, inputs, monkeypatch):
    ticks, solving = 0, []

    async def scenario():
        nonlocal ticks
        async with cluster(bundle) as aggregator:
            await aggregator._solver._ahead
            solve = type(bundle.head)._solve

            def slowly(head, mask):
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


def test_heads_of_up_to_two_failures_are_solved_before_anybody_fails(bundle, inputs):
    async def scenario():
        async with cluster(bundle) as aggregator:
            await aggregator._solver._ahead

    asyncio.run(scenario())
    for mask in range(1, 1 << NUM_DEVICES):
        assert bundle.head.is_solved(mask) or mask.bit_count() == 1


def test_a_head_keeps_the_last_solutions_up_to_a_size(bundle, monkeypatch):
    def fresh():
        monkeypatch.setattr(bundle.head, "_solved", head_module._Solutions())
        return [bundle.head.weights(mask)[0] for mask in range(1, 16)]

    unbounded = fresh()
    monkeypatch.setattr(head_module, "MAX_SOLVED_BYTES", 2500)
    for weight, again in zip(unbounded, fresh(), strict=True):
        np.testing.assert_array_equal(weight, again)
    assert 1 <= len(bundle.head._solved) <= 3
    assert bundle.head.is_solved(15)
    assert not bundle.head.is_solved(1)
