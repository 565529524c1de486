"""Nodes that send wrong features: left out of the answer, quarantined, tested with known inputs, taken back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nonn_device.node import StudentModel

from nonn.aggregator.inventory import Node
from nonn.aggregator.monitoring.metrics import Metrics, code_of
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.reply import Reply
from nonn.aggregator.screening import Screen, Screened
from nonn.aggregator.service import Aggregator
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from nonn.bundle.known import KnownInputs
from nonn.errors import BundleError
from nonn.fusion.consistency import ConsistencyVerdict
from nonn.rpc.endpoint import InferenceResult
from tests.agreement import check_against_offline_fusion
from tests.fanout import Watcher, student
from tests.serving import TIMEOUT_S, serving, until_async
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 8
# The head of a subset may take long to solve on a busy machine. Within the usual budget of 5 ms an answer would then be
# fused from a smaller subset that is solved.
PATIENT = PolicyConfig(deadline_s=TIMEOUT_S, fusion_budget_s=TIMEOUT_S)
QUICK = replace(PATIENT, quarantine_s=0.02)

Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("liars") / "bundle", num_devices=NUM_DEVICES, tested=True, width=16)


@pytest.fixture(scope="module")
def inputs() -> Any:
    return toy_data(200, seed=3)[0]


class Liar:
    """A student whose features are changed before they are sent."""

    def __init__(self, model: StudentModel) -> None:
        self._model, self.change = model, None

    change: Change | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._model.__aexit__(None, None, None)

    async def infer(self, request: Any, remaining_s: float | None) -> InferenceResult:
        result = await self._model.infer(request, remaining_s)
        if self.change is None:
            return result
        return InferenceResult({"features": self.change(np.array(result.outputs["features"]))}, result.parameters)


@contextlib.asynccontextmanager
async def cluster(
    bundle: Bundle, config: PolicyConfig = QUICK, watcher: Any = None
) -> AsyncIterator[tuple[Aggregator, list[Liar]]]:
    async with contextlib.AsyncExitStack() as stack:
        liars = [Liar(student(bundle, i)) for i in range(NUM_DEVICES)]
        addresses = [await stack.enter_async_context(serving(liar)) for liar in liars]
        nodes = [Node(id=f"node-{i}", address=address, student=i) for i, address in enumerate(addresses)]
        observers = [watcher] if watcher else []
        yield await stack.enter_async_context(Aggregator(bundle, nodes, config, observers=observers)), liars


def huge(features: Any) -> Any:
    return np.where(np.arange(features.shape[1]) % 2, 3e38, -3e38).astype(np.float32) + 0 * features


def hundredfold(features: Any) -> Any:
    return 100 * features


@pytest.mark.parametrize("lie", [huge, hundredfold])
def test_lies_of_two_of_eight_are_not_fused_and_the_answer_says_so(bundle: Bundle, inputs: Any, lie: Change) -> None:
    watcher = Watcher()

    async def scenario() -> Any:
        async with cluster(bundle, watcher=watcher) as (aggregator, liars):
            liars[2].change = liars[5].change = lie
            return await aggregator.infer(inputs[:3])

    answer = asyncio.run(scenario())
    assert answer.answered.tolist() == [True, True, False, True, True, False, True, True], answer.failures
    assert answer.degraded
    assert answer.expected_accuracy == bundle.table.accuracy[answer.mask]
    assert answer.statuses == {"node-2": ReplyStatus.INCONSISTENT, "node-5": ReplyStatus.INCONSISTENT}
    assert "contradict" in answer.failures["node-2"]
    check_against_offline_fusion(bundle, answer, slice(3))
    codes = {reply.node.id: code_of(reply.status) for reply in watcher.requests[0].replies}
    assert codes["node-2"] == codes["node-5"] == "INCONSISTENT"
    assert codes["node-0"] == "OK"


def test_honest_nodes_are_fused(bundle: Bundle, inputs: Any) -> None:
    async def scenario() -> Any:
        async with cluster(bundle) as (aggregator, _):
            return [await aggregator.infer(inputs[i : i + 1]) for i in range(50)] + [await aggregator.infer(inputs)]

    assert all(answer.answered.all() for answer in asyncio.run(scenario()))


def test_a_repeated_liar_is_quarantined_and_its_test_ends_that_when_it_is_honest_again(
    bundle: Bundle, inputs: Any
) -> None:
    watcher = Watcher()

    async def scenario() -> None:
        async with cluster(bundle, watcher=watcher) as (aggregator, liars):
            breaker, policy, metrics = (
                aggregator.policy.nodes["node-4"].breaker,
                aggregator.policy,
                Metrics(NUM_DEVICES),
            )
            metrics.attach(aggregator)
            assert b"nonn_quarantined_nodes 0.0" in metrics.exposition("")[0]
            liars[4].change = hundredfold
            for row in range(100):
                answer = await aggregator.infer(inputs[row : row + 1])
                assert not answer.answered[4]
                if breaker.quarantined:
                    break
            assert breaker.quarantined
            assert policy.state("node-4") == "out"
            assert b"nonn_quarantined_nodes 1.0" in metrics.exposition("")[0]
            answer = await aggregator.infer(inputs[:1])
            assert answer.statuses["node-4"] is ReplyStatus.LEFT_OUT
            assert "quarantine" in answer.failures["node-4"]
            await until_async(lambda: breaker.quarantines >= 3)  # it fails its tests too
            assert breaker.quarantined
            liars[4].change = None
            await until_async(lambda: not breaker.quarantined)
            assert (await aggregator.infer(inputs[:1])).answered.all()

    asyncio.run(scenario())
    states = [(event.node, event.before, event.after) for event in watcher.states]
    assert states == [("node-4", "up", "out"), ("node-4", "out", "up")]
    assert "contradict" in watcher.states[0].reason


def test_a_node_that_lies_to_its_test_only_stays_in_quarantine(bundle: Bundle, inputs: Any) -> None:
    async def scenario() -> None:
        async with cluster(bundle) as (aggregator, liars):
            breaker = aggregator.policy.nodes["node-1"].breaker
            aggregator.policy.on_contradiction("node-1", aggregator._clock())
            liars[1].change = lambda features: features[::-1]  # right answers to other inputs
            aggregator._prober.wake()
            await until_async(lambda: breaker.quarantines >= 4)
            assert breaker.quarantined

    asyncio.run(scenario())


def test_leaving_and_joining_again_is_no_way_out_of_quarantine(bundle: Bundle, inputs: Any) -> None:
    config = replace(PATIENT, quarantine_s=1000.0)

    async def scenario() -> None:
        async with cluster(bundle, config) as (aggregator, _):
            node = aggregator.nodes[3]
            await aggregator.infer(inputs[:1])
            await until_async(lambda: node.id in aggregator._screen.suspicion.scores)
            aggregator.policy.on_contradiction(node.id, aggregator._clock())
            await aggregator.remove_node(node.id)
            assert node.id not in aggregator._screen.suspicion.scores
            await aggregator.add_node(node)
            answer = await aggregator.infer(inputs[:1])
            assert answer.statuses == {node.id: ReplyStatus.LEFT_OUT}

    asyncio.run(scenario())


def test_of_two_replicas_the_one_that_was_to_be_fused_is_excluded(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with cluster(bundle) as (aggregator, _):
            honest = {i: features[:1] for i, features in enumerate(bundle.features[0])}
            fused = honest | {2: 100 * honest[2]}
            replies = [Reply(node, ReplyStatus.OK, 0.01, fused[node.student]) for node in aggregator.nodes]
            replica = Reply(replace(aggregator.nodes[2], id="replica"), ReplyStatus.OK, 0.02, honest[2])
            session = aggregator.policy.session(aggregator._clock())
            features, judged = aggregator._screened(session, fused, [*replies, replica])
            assert features.keys() == honest.keys() - {2}
            statuses = {reply.node.id: reply.status for reply in judged}
            assert statuses == dict.fromkeys(statuses, ReplyStatus.OK) | {"node-2": ReplyStatus.INCONSISTENT}
            await until_async(lambda: "node-2" in aggregator._screen.suspicion.scores)
            assert "replica" not in aggregator._screen.suspicion.scores

    asyncio.run(scenario())


def test_zeros_that_were_sent_before_a_quarantine_are_no_test(
    bundle: Bundle, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PATIENT, quarantine_s=1000.0)

    async def scenario() -> None:
        async with cluster(bundle, config) as (aggregator, _):
            probe, policy = aggregator._fanout.probe, aggregator.policy

            async def quarantined_meanwhile(*arguments: Any) -> Any:
                reply = await probe(*arguments)
                policy.on_contradiction("node-1", aggregator._clock())
                return reply

            monkeypatch.setattr(aggregator._fanout, "probe", quarantined_meanwhile)
            await aggregator._prober.probe("node-1")
            assert policy.nodes["node-1"].breaker.quarantined
            # A node that has left meanwhile is not quarantined.
            await aggregator.remove_node("node-2")
            monkeypatch.setattr(aggregator._screen, "suspects", lambda *_: ["node-2"])
            aggregator._quarantine(Screened({}))
            assert "node-2" not in policy.quarantined()

    asyncio.run(scenario())


def test_the_test_can_be_turned_off(bundle: Bundle, inputs: Any) -> None:
    async def scenario() -> Any:
        config = replace(PATIENT, exclusion_rate=0.0)
        async with cluster(bundle, config) as (aggregator, liars):
            liars[2].change = hundredfold
            return await aggregator.infer(inputs[:1])

    assert asyncio.run(scenario()).answered.all()


def test_a_bundle_without_the_test_serves_as_before(tmp_path: Any, inputs: Any) -> None:
    plain = toy_bundle(tmp_path / "bundle", num_devices=NUM_DEVICES, width=16)
    assert plain.consistency is None
    assert plain.known is None

    async def scenario() -> Any:
        async with cluster(plain) as (aggregator, liars):
            liars[2].change = hundredfold
            return await aggregator.infer(inputs[:1])

    assert asyncio.run(scenario()).answered.all()


def test_exclusion_below_the_quorum_is_an_error_that_names_the_node(bundle: Bundle, inputs: Any) -> None:
    from nonn.errors import QuorumError

    async def scenario() -> None:
        config = replace(PATIENT, quorum=NUM_DEVICES)
        async with cluster(bundle, config) as (aggregator, liars):
            liars[6].change = hundredfold
            with pytest.raises(QuorumError, match=r"7 of 8 devices .* node-6 \(excluded: its features contradict"):
                await aggregator.infer(inputs[:1])

    asyncio.run(scenario())


def test_failures_on_the_wire_name_the_excluded_node(bundle: Bundle, inputs: Any) -> None:
    async def scenario() -> Any:
        async with cluster(bundle) as (aggregator, liars):
            liars[0].change = huge
            return (await aggregator.infer(inputs[:1])).parameters()

    parameters = asyncio.run(scenario())
    assert "contradict" in json.loads(parameters["nonn_failures"])["node-0"]
    assert parameters["nonn_mask"] == 0b11111110


def test_a_request_that_is_undecided_is_no_evidence() -> None:
    features = {i: np.zeros((1, 2), np.float32) for i in range(3)}
    verdict = ConsistencyVerdict(
        features, surprise=dict.fromkeys(features, 1e-9), undecided=True, consensus=np.zeros(3, np.float32)
    )
    tests: Any = SimpleNamespace(test=lambda features, rate: verdict)
    screen = Screen(tests, 1e-5)
    screened = screen.examine(features, {i: f"node-{i}" for i in features})
    assert (screened.excluded, screened.surprise) == ((), {})
    assert screen.suspects(screened) == []
    assert screen.suspicion.scores == {}


def test_known_inputs_are_of_every_student(bundle: Bundle) -> None:
    known = bundle.known
    assert known is not None
    chosen, inputs = known.draw(np.random.default_rng(0), most=3)
    assert len(chosen) == len(inputs) == 3
    with pytest.raises(BundleError, match=f"no student {bundle.num_devices}; it has 0 to {bundle.num_devices - 1}"):
        known.error(bundle.num_devices, chosen, np.zeros((3, 4), np.float32))
    with pytest.raises(BundleError, match=r"known.npz: no device_1; build the bundle again"):
        KnownInputs({"inputs": inputs, "device_0": inputs}, 2)
