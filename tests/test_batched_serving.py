"""Many clients at once against real nodes and real aggregators: batches, limits, an orderly end, memory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nonn_device.node import StudentModel
from nonn_device.runtime import OnnxRuntime
from numpy.typing import NDArray

from nonn.aggregator.batching import BatchConfig, Batcher
from nonn.aggregator.inventory import Node, write_inventory
from nonn.aggregator.monitoring.metrics import Metrics
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.server import METADATA_MADE, METADATA_S, FusedModel
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.errors import InputError
from nonn.reliability.subsets import mask_of
from nonn.rpc.loop import run
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request
from tests.fanout import good_reply
from tests.serving import TIMEOUT_S, fake_node, process, running_node, serving
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("batching") / "bundle", num_devices=NUM_DEVICES)


@contextlib.asynccontextmanager
async def fused(
    bundle: Bundle, config: Any = None, policy: Any = None, observers: Any = (), **fakes: Any
) -> AsyncIterator[Any]:
    """A stub for a batching aggregator over students in this process; ``node_2=behaviour`` is a fake in one's place."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for i in range(NUM_DEVICES):
            runtime = OnnxRuntime(bundle.student_path(i), bundle.manifest.students[i], bundle.manifest.input)
            fake = fakes.get(f"node_{i}")
            server = fake_node(fake) if fake else serving(StudentModel(bundle, i, runtime))
            nodes.append(Node(id=f"node-{i}", address=await stack.enter_async_context(server), student=i))
        policy = policy or PolicyConfig(deadline_s=TIMEOUT_S)
        aggregator = Aggregator(bundle, nodes, policy, observers=observers)
        for observer in observers:
            observer.attach(aggregator)

        def answered(answer: Answer) -> None:
            for observer in observers:
                observer.answered(answer)

        model = FusedModel(aggregator, batching=config, answered=answered)
        address = await stack.enter_async_context(serving(model))
        channel = await stack.enter_async_context(aio.insecure_channel(address))
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


async def ask(stub: Any, inputs: NDArray[Any], timeout_s: Any = TIMEOUT_S) -> Any:
    return Answer.from_response(
        await stub.ModelInfer(new_request("nonn", {"input": inputs}, {}), timeout=timeout_s), 0.0
    )


def test_a_crowd_gets_from_a_real_cluster_what_each_would_get_alone(bundle: Bundle) -> None:
    inputs = toy_data(120, seed=3)[0]
    sizes = [1, 2, 3] * 20
    batches = [inputs[at : at + size] for at, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)]
    batches[::4] = [batch.astype(np.float32) for batch in batches[::4]]

    async def scenario() -> Any:
        async with fused(bundle) as stub:
            alone = [await ask(stub, batch) for batch in batches]
            together = await asyncio.gather(*(ask(stub, batch) for batch in batches))
        return alone, together

    for one, other in zip(*asyncio.run(scenario()), strict=True):
        assert one.mask == other.mask == mask_of(range(NUM_DEVICES))
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.expected_accuracy == other.expected_accuracy


def test_connections_from_one_address_are_one_caller_that_shares_batches(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers, infer = list[tuple[str, str]](), Batcher.infer

    async def seen(self: Any, batch: Any, remaining_s: Any, caller: str, connection: str) -> Answer:
        callers.append((caller, connection))
        return await infer(self, batch, remaining_s, caller, connection)

    monkeypatch.setattr(Batcher, "infer", seen)

    async def scenario() -> None:
        async with fused(bundle) as stub, fused(bundle) as other:
            for each in (stub, other):
                await ask(each, toy_data(1, seed=3)[0])

    asyncio.run(scenario())
    assert [caller for caller, _ in callers] == ["127.0.0.1"] * 2
    assert len({connection for _, connection in callers}) == 2


LIMITS = BatchConfig(max_queue=8, max_samples=6)


async def refusal(call: Any) -> Any:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def test_over_the_protocol_a_full_queue_is_resource_exhausted(bundle: Bundle) -> None:
    inputs = toy_data(6, seed=3)[0]

    async def scenario() -> Any:
        held = asyncio.Event()

        async def hangs(raw: Any, context: Any) -> Any:
            if pb.ModelInferRequest.FromString(raw).inputs[0].shape[0] > 1:  # a probe has one sample
                await held.wait()
            return good_reply(bundle, raw)

        async with fused(bundle, LIMITS, node_1=hangs) as stub:
            both = [asyncio.ensure_future(ask(stub, inputs)) for _ in range(2)]
            (refused,), (first,) = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            code, details = await refusal(refused)
            held.set()
            await first
        return code, details

    code, details = asyncio.run(scenario())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "--max-queue" in details


def test_over_the_protocol_a_batch_larger_than_a_request_may_be_is_invalid(bundle: Bundle) -> None:
    async def scenario() -> Any:
        async with fused(bundle, LIMITS) as stub:
            return await refusal(ask(stub, toy_data(7, seed=3)[0]))

    code, details = asyncio.run(scenario())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "7 samples; the limit is 6 per request" in details


@pytest.mark.parametrize(
    ("config", "max_samples"), [(LIMITS, 6), (BatchConfig(max_request_bytes=5000), 19), (BatchConfig(), 1024)]
)
def test_the_limits_are_in_the_metadata_and_the_largest_request_within_them_is_answered(
    bundle: Bundle, config: BatchConfig, max_samples: int
) -> None:
    async def scenario() -> Any:
        async with fused(bundle, config) as stub:
            answer = await ask(stub, np.zeros((max_samples, 1, 8, 8), np.float32))
            return answer, await stub.ModelMetadata(pb.ModelMetadataRequest(name="nonn"))

    answer, metadata = asyncio.run(scenario())
    assert len(answer.logits) == max_samples
    stated = json.loads(metadata.properties["nonn_batching"])
    assert (stated["max_queue"], stated["max_samples"]) == (config.max_queue, max_samples)


def test_a_flood_of_calls_for_metadata_makes_few_and_their_states_are_current(bundle: Bundle) -> None:
    """A reply costs as much as several requests, and no queue limits these calls."""
    made, now = 0, 10.0

    def state() -> Any:
        nonlocal made
        made += 1
        return {}

    async def scenario() -> None:
        nonlocal now
        aggregator = Aggregator(bundle, [Node(id="a", address="127.0.0.1:1", student=0)], clock=lambda: now)
        model = FusedModel(aggregator, state)

        def found() -> Any:
            (node,) = json.loads(model.metadata().properties["nonn_nodes"])
            return node["state"], node["latency_s"]

        before = {found() for _ in range(100)}
        assert (len(before), made) == (1, METADATA_MADE)
        aggregator.policy.on_success("a", 0.01, now)
        assert {found() for _ in range(100)} == {("up", 0.01)}
        assert made == METADATA_MADE + 1
        now += METADATA_S
        found()
        assert made == METADATA_MADE + 2

    asyncio.run(scenario())


@contextlib.contextmanager
def running_cluster(bundle: Bundle, folder: Path, *options: str) -> Iterator[Any]:
    """Two nodes and an aggregator as processes: the aggregator, its ready line, the nodes."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(running_node(bundle.path, i)) for i in range(2)]
        inventory = folder / "nodes.toml"
        write_inventory(
            inventory, [Node(id=f"n{i}", address=ready["address"], student=i) for i, (_, ready) in enumerate(nodes)]
        )
        aggregator = stack.enter_context(
            process("nonn", "serve", bundle.path, "--inventory", inventory, "--watch-stdin", *options)
        )
        assert aggregator.stdout is not None
        yield aggregator, json.loads(aggregator.stdout.readline()), [child for child, _ in nodes]


def test_sigterm_sets_health_first_refuses_new_requests_and_answers_those_in_flight(
    bundle: Bundle, tmp_path: Path
) -> None:
    inputs = toy_data(1, seed=3)[0]

    async def scenario(aggregator: Any, address: Any, nodes: Any) -> Any:
        async with aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            await ask(stub, inputs)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            states = [(await watch.read()).status]
            nodes[1].send_signal(signal.SIGSTOP)  # so that the next request is under way until it goes on
            under_way = stub.ModelInfer(new_request("nonn", {"input": inputs}, {}), timeout=2 * TIMEOUT_S)
            await stub.ServerLive(pb.ServerLiveRequest())  # came after it on the same connection
            aggregator.send_signal(signal.SIGTERM)
            states.append((await watch.read()).status)
            with pytest.raises(aio.AioRpcError) as caught:
                await ask(stub, inputs)
            was_pending = not under_way.done()
            nodes[1].send_signal(signal.SIGCONT)
            answer = Answer.from_response(await under_way, 0.0)
            return states, caught.value, was_pending, answer

    with running_cluster(bundle, tmp_path, "--deadline", str(TIMEOUT_S)) as (aggregator, ready, nodes):
        try:
            states, refused, was_pending, answer = asyncio.run(scenario(aggregator, ready["address"], nodes))
        finally:
            nodes[1].send_signal(signal.SIGCONT)
        serving_status = health_pb2.HealthCheckResponse
        assert states == [serving_status.SERVING, serving_status.NOT_SERVING]
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert "accepts no requests" in refused.details()
        assert was_pending
        assert answer.mask == 0b11
        assert aggregator.wait(TIMEOUT_S) == 0


def test_an_oversized_message_is_refused_unread_and_the_cluster_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    inputs = toy_data(1, seed=3)[0]
    with (
        running_cluster(bundle, tmp_path, "--max-samples", "16") as (_, ready, _),
        Client(ready["address"]) as client,
    ):
        with pytest.raises(InputError, match=r"larger than max.*raise the server's --max-samples"):
            client.infer(np.zeros((2000, 1, 8, 8), np.uint8))
        with pytest.raises(InputError, match="17 samples; the limit is 16 per request"):
            client.infer(np.zeros((17, 1, 8, 8), np.uint8))
        assert client.infer(inputs).mask == 0b11


def test_memory_stays_flat_over_requests(bundle: Bundle) -> None:
    """Counts live allocations of nodes, aggregator and client: resident memory also grows with what malloc keeps.

    On uvloop as in production; asyncio's own loop keeps up to a hundred cancelled timers.
    """
    inputs, num_requests = toy_data(64, seed=3)[0], 150
    # With the clock at rest, the monitor's last 60 seconds are one, which the first round fills.
    observers = [Monitor(bundle, clock=lambda: 0.0), Metrics(NUM_DEVICES)]

    async def scenario() -> list[int]:
        blocks = []
        async with fused(bundle, observers=observers) as stub:

            async def one_client(requests: Iterator[int]) -> None:
                for i in requests:
                    await ask(stub, inputs[i % 60 : i % 60 + 1 + i % 4])

            for _ in range(5):
                requests = iter(range(num_requests))
                await asyncio.gather(*(one_client(requests) for _ in range(3)))
                gc.collect()
                blocks.append(sys.getallocatedblocks())
        return blocks

    growth = [later - earlier for earlier, later in itertools.pairwise(run(scenario()))]
    # A leak is at least one allocation a fan-out, in every round; a fan-out has at most three requests.
    assert min(growth) < num_requests / 6, growth
