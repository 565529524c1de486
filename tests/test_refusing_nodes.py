"""Nodes that refuse batches, or state that they accept small ones only: what that costs the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.aggregator.fanout import connect_insecure
from nonn.aggregator.inventory import Node
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.server import FusedModel
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer, ReplyStatus
from nonn.bundle import Bundle
from nonn.rpc.v1 import inference_pb2 as pb
from tests.fanout import cluster, good_reply
from tests.policies import policy_of
from tests.serving import TIMEOUT_S, fake_node, until_async
from tests.toys import toy_bundle, toy_data

NUM_DEVICES, CROWD, BAD = 4, 33, "node-1"
CONFIG: dict[str, Any] = {
    "deadline_s": TIMEOUT_S,
    "breaker_reset_s": TIMEOUT_S,
}  # no test sees a node come back by itself


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("refusing") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture
def inputs() -> NDArray[np.uint8]:
    return toy_data(CROWD, seed=3)[0]


class Cluster:
    """An aggregator with batching over fake nodes, of which one refuses what it is told to.

    Attributes:
        refuses: whether that node refuses so many samples.
        stated: what it states as its limit; empty to state none.
        sizes: number of samples of each request to an honest node.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.refuses: Callable[[int], bool] = lambda num_samples: False
        self.stated, self.sizes = "", list[int]()

    async def honest(self, raw: bytes, context: Any) -> Any:
        if inputs := pb.ModelInferRequest.FromString(raw).inputs:
            self.sizes.append(inputs[0].shape[0])
        return good_reply(self._bundle, raw) if inputs else pb.ModelMetadataResponse().SerializeToString()

    async def bad(self, raw: bytes, context: Any) -> Any:
        inputs = pb.ModelInferRequest.FromString(raw).inputs
        if not inputs:
            stated = {"nonn_max_batch": self.stated} if self.stated else {}
            return pb.ModelMetadataResponse(properties=stated).SerializeToString()
        if self.refuses(inputs[0].shape[0]):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "its features are not finite")
        return good_reply(self._bundle, raw)

    @contextlib.asynccontextmanager
    async def running(self, **config: Any) -> AsyncIterator[FusedModel]:
        monitor = Monitor(self._bundle)
        async with contextlib.AsyncExitStack() as stack:
            nodes = []
            for i in range(NUM_DEVICES):
                address = await stack.enter_async_context(fake_node(self.bad if i == 1 else self.honest))
                nodes.append(Node(id=f"node-{i}", address=address, student=i))
            policy = PolicyConfig(**CONFIG | config)
            aggregator = Aggregator(self._bundle, nodes, policy, connect=monitor.remembering(connect_insecure))
            model = await stack.enter_async_context(FusedModel(aggregator))
            monitor.attach(aggregator)
            await stack.enter_async_context(monitor)
            yield model

    async def crowd(self, model: FusedModel, inputs: NDArray[Any]) -> tuple[list[Answer], int]:
        """Answers to requests of one sample that come at the same time, and the number of fan-outs."""
        self.sizes.clear()
        answers = await asyncio.gather(*(model._batcher.infer(inputs[i : i + 1]) for i in range(len(inputs))))
        return answers, len(self.sizes) // (NUM_DEVICES - 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_node_that_refuses_every_batch_is_out_and_the_others_answer_whole_batches(
    bundle: Bundle, inputs: NDArray[Any], dtype: Any
) -> None:
    async def scenario() -> tuple[Any, int, str]:
        bad = Cluster(bundle)
        bad.refuses = lambda num_samples: num_samples > 1
        async with bad.running(early_loss=0.0) as model:
            for _ in range(8):
                answers, fanouts = await bad.crowd(model, inputs.astype(dtype))
            return answers, fanouts, model._aggregator.policy.state(BAD)

    answers, fanouts, state = asyncio.run(scenario())
    assert state == "out"
    assert [answer.mask for answer in answers] == [0b1101] * CROWD
    assert fanouts <= 6  # one alone and the others in a batch, usually; each alone if the batch is sent again


def test_a_node_that_refuses_batches_and_some_requests_alone_costs_few_fan_outs(
    bundle: Bundle, inputs: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nonn.aggregator.batching.SPLIT_REST", 1e6)

    async def scenario() -> tuple[Any, int, str]:
        bad, asked = Cluster(bundle), 0

        def refuses(num_samples: int) -> bool:
            nonlocal asked
            asked += 1
            return num_samples > 1 or asked % 2 == 0

        bad.refuses = refuses
        async with bad.running(early_loss=1.0) as model:
            for _ in range(8):
                answers, fanouts = await bad.crowd(model, inputs.astype(np.float32))
            return answers, fanouts, model._aggregator.policy.state(BAD)

    answers, fanouts, state = asyncio.run(scenario())
    assert state == "up"  # a client's values may be the cause
    assert all(answer.mask & 0b1101 == 0b1101 for answer in answers)
    assert fanouts <= 6


def test_bytes_that_one_node_alone_refuses_are_its_failure_and_floats_are_not(bundle: Bundle) -> None:
    async def refuses(raw: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "its features are not finite")

    async def scenario(batch: NDArray[Any]) -> tuple[list[Any], str]:
        bad = False

        async def behaviour(raw: Any, context: Any) -> Any:
            return await refuses(raw, context) if bad else good_reply(bundle, raw)

        async with cluster(bundle, PolicyConfig(**CONFIG), fakes={1: behaviour}) as aggregator:
            bad = True
            answers = [await aggregator.infer(batch) for _ in range(2)]
            return [answer.statuses[BAD] for answer in answers], aggregator.policy.state(BAD)

    batch = np.zeros((2, 1, 8, 8), np.uint8)
    assert asyncio.run(scenario(batch)) == ([ReplyStatus.FAILED] * 2, "out")
    assert asyncio.run(scenario(batch.astype(np.float32))) == ([ReplyStatus.REFUSED] * 2, "up")


def test_a_foreign_node_does_not_have_to_state_its_limit(bundle: Bundle) -> None:
    async def scenario() -> tuple[list[float], str]:
        bad, limits = Cluster(bundle), []
        bad.refuses = lambda num_samples: num_samples > 3

        async with cluster(bundle, PolicyConfig(**CONFIG), fakes={1: bad.bad}, node_1={"foreign": True}) as aggregator:
            for size in (3, 8, 4, 8):
                await aggregator.infer(np.zeros((size, 1, 8, 8), np.uint8))
                limits.append(aggregator.policy.nodes[BAD].max_batch)
            return limits, aggregator.policy.state(BAD)

    assert asyncio.run(scenario()) == ([np.inf, 4, 2, 2], "up")


@pytest.mark.parametrize(
    ("stated", "early_loss", "least", "most"), [("1", 1.0, 17, CROWD), ("16", 1.0, 5, 16), ("1", 0.0, 1, 1)]
)
def test_a_node_that_states_a_tiny_limit_is_left_out_of_batches_if_that_loses_little(
    bundle: Bundle, inputs: NDArray[Any], stated: str, early_loss: float, least: int, most: int
) -> None:
    async def scenario() -> tuple[list[Answer], list[int]]:
        liar = Cluster(bundle)
        liar.stated = stated
        async with liar.running(early_loss=early_loss) as model:
            await until_async(lambda: model._aggregator.policy.nodes[BAD].max_batch == int(stated))
            for _ in range(8):
                answers, _ = await liar.crowd(model, inputs)
            return answers, liar.sizes

    answers, sizes = asyncio.run(scenario())
    assert least <= max(sizes) <= most
    without = [answer for answer in answers if answer.mask == 0b1101]
    assert all(answer.mask in (0b1101, 0b1111) for answer in answers)
    assert bool(without) is (most == CROWD)
    for answer in without:
        assert answer.failures[BAD].startswith("not asked: it accepts 1 samples, the batch has ")


def test_the_policy_leaves_nodes_out_of_batches_that_they_do_not_accept() -> None:
    policy = policy_of(early_loss=0.02)
    policy.accepts("c", 2)
    assert policy.max_batch(2) == 2
    assert policy.max_batch(3) == np.inf  # c is worth one point
    assert policy.session(0.0, num_samples=2).ask == ("a", "b", "c")
    assert policy.session(0.0, num_samples=3).ask == ("a", "b")
    policy.accepts("b", 4)
    assert policy.max_batch(8) == 4  # b is worth ten after a
    strict = policy_of(early_loss=0.02, quorum=3)
    strict.accepts("c", 2)
    assert strict.max_batch(8) == 2
    assert strict.session(0.0, num_samples=8).ask == ("a", "b", "c")  # they say what is wrong with it


def test_a_replica_that_accepts_the_batch_is_asked_first() -> None:
    policy = policy_of({"a": 0, "a2": 0, "b": 1})
    policy.accepts("a", 2)
    assert policy.session(0.0, num_samples=2).ask == ("a", "b")
    assert policy.session(0.0, num_samples=3).ask == ("a2", "b")


def test_a_false_refusal_keeps_a_node_out_though_it_has_just_answered() -> None:
    policy = policy_of(breaker_reset_s=0.5)
    policy.nodes["b"].pending += 1
    policy.on_success("b", 0.01, 1.0)
    assert policy.on_fault("b", 2.0, out=True)
    assert (policy.state("b"), policy.next_probe_s(2.0)) == ("out", pytest.approx(0.5))
    assert not policy.on_fault("gone", 2.0)
