"""Whom the fan-out asks: nodes that send rubbish, foreign nodes, nodes that come and go."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.aggregator.reply import Reply, ReplyReader
from nonn.aggregator.service import Aggregator
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from nonn.errors import ConfigError, InputError, QuorumError
from nonn.reliability.subsets import members
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import add_tensors, read_tensors
from tests.agreement import check_against_offline_fusion
from tests.fanout import PATIENT, Watcher, cluster, good_reply
from tests.serving import until_async

NUM_DEVICES = 4


# What nodes send


@pytest.mark.parametrize(("size", "error"), [(100_000, "bad reply: oversized: "), (70_000_000, "RESOURCE_EXHAUSTED")])
def test_an_oversized_reply_is_its_nodes_failure(bundle: Bundle, inputs: NDArray[Any], size: Any, error: Any) -> None:
    async def large(raw: Any, context: Any) -> Any:
        response = pb.ModelInferResponse.FromString(good_reply(bundle, raw))
        response.parameters["padding"].string_param = "x" * size
        return response.SerializeToString()

    async def scenario() -> Any:
        async with cluster(bundle, fakes={1: large}) as aggregator:
            return await aggregator.infer(inputs[:2])

    answer = asyncio.run(scenario())
    assert members(answer.mask) == (0, 2, 3)
    assert answer.failures["node-1"].startswith(error)


def test_a_node_that_ends_calls_without_a_message_is_out_and_the_others_answer(
    bundle: Bundle, inputs: NDArray[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> tuple[list[Any], str]:
        async with cluster(bundle, fakes={1: None}) as aggregator:
            return [await aggregator.infer(inputs[:2]) for _ in range(3)], aggregator.policy.state("node-1")

    answers, state = asyncio.run(scenario())
    assert [members(answer.mask) for answer in answers] == [(0, 2, 3)] * 3
    assert state == "out"
    assert "cannot be read" not in caplog.text  # such a reply is expected: it leaves no traceback in the log


def test_an_error_in_reading_a_reply_is_the_failure_of_that_node(
    bundle: Bundle, inputs: NDArray[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = ReplyReader.read

    def broken(self: ReplyReader, raw: bytes, request_id: str, num_samples: int) -> Any:
        if self._student.device == 1:
            raise IndexError("no such tensor")
        return whole(self, raw, request_id, num_samples)

    monkeypatch.setattr(ReplyReader, "read", broken)

    async def scenario() -> Any:
        async with cluster(bundle) as aggregator:
            return await aggregator.infer(inputs[:2])

    assert members(asyncio.run(scenario()).mask) == (0, 2, 3)
    assert "node node-1: its reply cannot be read" in caplog.text


def test_a_request_that_every_node_finds_invalid_is_the_clients_fault_and_switches_nobody_off(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    asked = 0

    async def picky(raw: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked > NUM_DEVICES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "features are not finite")
        return good_reply(bundle, raw)

    async def scenario() -> None:
        watcher = Watcher()
        async with cluster(bundle, fakes=dict.fromkeys(range(NUM_DEVICES), picky), watcher=watcher) as aggregator:
            for _ in range(5):
                with pytest.raises(InputError, match=r"no node accepts this request; node-\d: INVALID_ARGUMENT"):
                    await aggregator.infer(inputs[:1])
            assert {aggregator.policy.state(node.id) for node in aggregator.nodes} == {"up"}
            assert {record.pending for record in aggregator.policy.nodes.values()} == {0}
            assert [event.outcome for event in watcher.requests] == ["invalid"] * 5

    asyncio.run(scenario())


def foreign(bundle: Bundle, seen: Any, **wrong: Any) -> Any:
    """An ordinary server of the protocol: its own names, float32 inputs, and it knows no bundle."""

    async def behaviour(raw: Any, context: Any) -> Any:
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


def test_an_ordinary_server_stands_in_for_a_node_under_its_own_names(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> Any:
        seen: list[Any] = []
        async with cluster(bundle, fakes={1: foreign(bundle, seen)}, node_1=AS_FOREIGN) as aggregator:
            return await aggregator.infer(inputs[:3]), seen[-1]

    answer, request = asyncio.run(scenario())
    assert answer.answered.all()
    assert request.model_name == "resnet"
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [("image", "FP32", [3, 1, 8, 8])]
    assert [output.name for output in request.outputs] == ["pooled"]
    assert not request.parameters  # neither our bundle nor our checksum


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"id": "7777"}, "bad reply: to request '7777'"),
        ({"scale": np.float32("nan")}, "bad reply: pooled contain NaN or infinity"),
        ({"scale": np.float64(1)}, "bad reply: float64 pooled"),
    ],
)
def test_a_foreign_node_is_vouched_for_and_still_checked(
    bundle: Bundle, inputs: NDArray[Any], wrong: Any, error: Any
) -> None:
    async def scenario() -> Any:
        async with cluster(bundle, fakes={1: foreign(bundle, [], **wrong)}, node_1=AS_FOREIGN) as aggregator:
            return await aggregator.infer(inputs[:1])

    answer = asyncio.run(scenario())
    assert members(answer.mask) == (0, 2, 3)
    assert answer.failures["node-1"].startswith(error)


# Nodes that come and go


def test_nodes_join_and_leave_under_load_and_no_request_fails(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> Any:
        watcher, answers = Watcher(), []
        async with cluster(bundle, watcher=watcher) as aggregator:
            node = aggregator.nodes[2]
            stop = False

            async def load(offset: Any) -> None:
                while not stop:
                    answers.append((offset, await aggregator.infer(inputs[offset : offset + 1])))

            clients = [asyncio.create_task(load(k)) for k in range(4)]
            for _ in range(5):
                await aggregator.remove_node("node-2", "left")
                done = len(answers)
                await until_async(lambda done=done: len(answers) > done + 8)  # type: ignore[misc]
                without = answers[-1][1]
                await aggregator.add_node(node)
                done = len(answers)
                await until_async(lambda done=done: len(answers) > done + 8)  # type: ignore[misc]
                assert members(without.mask) == (0, 1, 3)
                assert answers[-1][1].answered.all()
            stop = True
            await asyncio.gather(*clients)
            with pytest.raises(ConfigError, match="node 'node-2' is already in the cluster"):
                await aggregator.add_node(node)
            with pytest.raises(ConfigError, match="student 9; the bundle has 0 to 3"):
                await aggregator.add_node(replace(node, id="x", student=9))
            with pytest.raises(ConfigError, match="no node 'x' in the cluster"):
                await aggregator.remove_node("x")
        return answers, watcher

    answers, watcher = asyncio.run(scenario())
    for offset, answer in answers:
        check_against_offline_fusion(bundle, answer, slice(offset, offset + 1))
    changes = [(event.before, event.after, event.reason) for event in watcher.states if event.node == "node-2"]
    assert changes == [("up", "", "left"), ("", "unknown", "joined"), ("unknown", "up", "")] * 5


def test_a_cluster_without_nodes_says_so(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> None:
        async with Aggregator(bundle, []) as aggregator:
            assert not aggregator.ready
            with pytest.raises(QuorumError, match=r"missing: no node is in the cluster$"):
                await aggregator.infer(inputs[:1])

    asyncio.run(scenario())


def test_below_the_quorum_students_that_no_node_runs_are_named(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> None:
        async with cluster(bundle, replace(PATIENT, quorum=3)) as aggregator:
            await aggregator.remove_node("node-1")
            await aggregator.remove_node("node-3")
            with pytest.raises(QuorumError, match=r"missing: no node in the cluster runs student 1, 3$"):
                await aggregator.infer(inputs[:1])

    asyncio.run(scenario())


def test_a_reply_of_a_node_that_has_left_is_no_news(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> None:
        watcher = Watcher()
        async with cluster(bundle, watcher=watcher) as aggregator:
            gone = aggregator.nodes[2]
            await aggregator.remove_node(gone.id)
            aggregator._states.learn(Reply(gone, ReplyStatus.OK, 0.1), True)
            aggregator._states.learn(Reply(gone, ReplyStatus.REFUSED, 0.1, error="bad request"), True)
            assert [event.after for event in watcher.states] == [""]
            await aggregator.add_node(dataclasses.replace(gone))  # one that came after it, under its id
            for _ in range(9):
                aggregator._states.learn(Reply(gone, ReplyStatus.FAILED, 0.1, error="reset"), True)
            assert aggregator.policy.state(gone.id) == "up"
            aggregator._states.learn(Reply(aggregator.nodes[-1], ReplyStatus.FAILED, 0.1, error="reset"), True)
            assert aggregator.policy.nodes[gone.id].breaker.failures == 1
        assert watcher.late == []

    asyncio.run(scenario())


def test_an_observer_that_fails_costs_no_answer(
    bundle: Bundle, inputs: NDArray[Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Watcher):
        def __init__(self) -> None:
            def fail(event: Any) -> None:
                raise RuntimeError("no disk")

            self.on_request = self.on_state = self.on_late = fail

    async def scenario() -> Any:
        async with cluster(bundle, watcher=Broken()) as aggregator:
            answer = await aggregator.infer(inputs[:1])
            await asyncio.sleep(0)
            return answer

    assert asyncio.run(scenario()).answered.all()
    assert "an observer failed at RequestEvent" in caplog.text
