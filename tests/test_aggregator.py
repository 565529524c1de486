from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node, load_inventory, write_inventory
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.server import FusedModel
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.errors import ConfigError, InputError, QuorumError
from nonn.reliability.subsets import members
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request, read_tensors
from tests.agreement import check_against_offline_fusion
from tests.fanout import good_reply, student
from tests.serving import TIMEOUT_S, fake_node, serving
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 4
# Quick to give up on silence and to look again, and far longer than an honest reply takes on a busy machine.
CONFIG = PolicyConfig(deadline_s=0.5, breaker_reset_s=0.05)
PATIENT = PolicyConfig(deadline_s=TIMEOUT_S)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("aggregator") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture(scope="module")
def inputs() -> Any:
    return toy_data(200, seed=3)[0]


@contextlib.asynccontextmanager
async def cluster(bundle: Bundle, config: Any = PATIENT, **fakes: Any) -> AsyncIterator[Any]:
    """An aggregator over real students in this process; ``node_2=behaviour`` puts a fake in one's place."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for i in range(NUM_DEVICES):
            fake = fakes.get(f"node_{i}")
            server = fake_node(fake) if fake else serving(student(bundle, i))
            nodes.append(Node(id=f"node-{i}", address=await stack.enter_async_context(server), student=i))
        yield await stack.enter_async_context(Aggregator(bundle, nodes, config))


def test_all_devices_together_answer_as_offline_fusion_does(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> Any:
        async with cluster(bundle) as aggregator:
            return await aggregator.infer(inputs)

    answer = asyncio.run(scenario())
    assert answer.answered.all()
    assert not answer.degraded
    assert answer.failures == {}
    assert answer.bundle == bundle.hash
    check_against_offline_fusion(bundle, answer, slice(None))


async def refuses(raw: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "other plans")


BAD_REPLIES: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"features": np.full((2, 4), np.nan, np.float32)}, "features contain NaN or infinity"),
    "infinity": ({"features": np.full((2, 4), np.inf, np.float32)}, "features contain NaN or infinity"),
    "wide": ({"features": np.ones((2, 5), np.float32)}, "float32 features [2, 5], expected float32 [2, 4]"),
    "short": ({"features": np.ones((1, 4), np.float32)}, "float32 features [1, 4], expected float32 [2, 4]"),
    "double": ({"features": np.ones((2, 4))}, "float64 features [2, 4], expected float32 [2, 4]"),
    "flat": ({"features": np.ones(8, np.float32)}, "float32 features [8]"),
    "truncated": ({"raw": bytes(31)}, "31 bytes of raw contents"),
    "misnamed": ({"name": "logits"}, "no 'features' among its outputs (logits)"),
    "stale": ({"id": "0"}, "to request '0', not "),
    "foreign": ({"of": "f" * 64}, "of bundle ffffffffffff…, not "),
    "anonymous": ({"of": ""}, "of bundle None…, not "),
}


@pytest.mark.parametrize("kind", BAD_REPLIES)
def test_a_bad_reply_is_its_nodes_failure_and_is_never_fused(bundle: Bundle, inputs: NDArray[Any], kind: Any) -> None:
    changes, reason = BAD_REPLIES[kind]

    async def spoiled(raw: Any, context: Any) -> Any:
        return good_reply(bundle, raw, **changes)

    async def scenario() -> Any:
        async with cluster(bundle, node_1=spoiled) as aggregator:
            return await aggregator.infer(inputs[:2])

    answer = asyncio.run(scenario())
    assert answer.answered.tolist() == [True, False, True, True]
    assert answer.degraded
    assert list(answer.failures) == ["node-1"]
    assert reason in answer.failures["node-1"]
    check_against_offline_fusion(bundle, answer, slice(2))


async def nasty_text(raw: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.INTERNAL, "x\n\x1b[31m\u202e" + 5000 * "y")


def nasty_names(bundle: Bundle) -> Any:
    async def behaviour(raw: Any, context: Any) -> Any:
        return good_reply(bundle, raw, name="\n\x1b[31m" + 500 * "y")

    return behaviour


@pytest.mark.parametrize("by", ["status", "tensor"])
def test_what_a_node_says_is_one_printable_line_in_answers(bundle: Bundle, inputs: NDArray[Any], by: str) -> None:
    async def scenario() -> Any:
        async with cluster(bundle, node_1=nasty_text if by == "status" else nasty_names(bundle)) as aggregator:
            return await aggregator.infer(inputs[:2])

    text = asyncio.run(scenario()).failures["node-1"]
    assert text.isprintable()
    assert "\\n" in text
    assert len(text) < 400


def test_the_good_reply_that_bad_ones_are_made_of_is_fused(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def good(raw: Any, context: Any) -> Any:
        return good_reply(bundle, raw)

    async def scenario() -> Any:
        async with cluster(bundle, node_1=good) as aggregator:
            return await aggregator.infer(inputs[:2])

    assert asyncio.run(scenario()).answered.all()


def test_garbage_and_errors_are_failures_of_their_nodes(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def garbage(raw: Any, context: Any) -> Any:
        return b"\xff" * 100

    async def breaks(raw: Any, context: Any) -> None:
        raise RuntimeError("broken device")

    async def scenario() -> Any:
        async with cluster(bundle, node_0=garbage, node_1=refuses, node_2=breaks) as aggregator:
            return await aggregator.infer(inputs[:2])

    answer = asyncio.run(scenario())
    assert members(answer.mask) == (3,)
    assert answer.failures["node-0"] == "bad reply: 100 bytes that are not a ModelInferResponse"
    assert answer.failures["node-1"] == "FAILED_PRECONDITION: other plans"
    assert answer.failures["node-2"].startswith("UNKNOWN: ")
    check_against_offline_fusion(bundle, answer, slice(2))


def test_a_node_of_another_bundle_is_never_fused(bundle: Bundle, inputs: NDArray[Any], tmp_path: Path) -> None:
    # Same students, other classes: the features would fit, the answer would not.
    other = toy_bundle(tmp_path / "other", num_devices=NUM_DEVICES, num_parts=2)
    assert other.hash != bundle.hash

    async def scenario() -> Any:
        async with contextlib.AsyncExitStack() as stack:
            nodes = []
            for i in range(NUM_DEVICES):
                server = serving(student(other if i == 2 else bundle, i))
                nodes.append(Node(id=f"node-{i}", address=await stack.enter_async_context(server), student=i))
            aggregator = await stack.enter_async_context(Aggregator(bundle, nodes, PATIENT))
            return await aggregator.infer(inputs[:5])

    answer = asyncio.run(scenario())
    assert members(answer.mask) == (0, 1, 3)
    assert answer.failures["node-2"].startswith("FAILED_PRECONDITION: student-2 is of bundle")
    check_against_offline_fusion(bundle, answer, slice(5))


def test_fewer_than_the_quorum_is_an_error_that_names_who_is_missing_and_why(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario() -> None:
        config = PolicyConfig(deadline_s=TIMEOUT_S, quorum=3)
        async with cluster(bundle, config, node_0=refuses, node_3=refuses) as aggregator:
            assert not aggregator.ready
            await aggregator.infer(inputs[:1])

    with pytest.raises(QuorumError) as caught:
        asyncio.run(scenario())
    assert str(caught.value) == (
        "2 of 4 devices answered, the quorum is 3; missing: "
        "node-0 (FAILED_PRECONDITION: other plans); node-3 (FAILED_PRECONDITION: other plans)"
    )


@pytest.mark.alone
def test_a_node_that_hangs_costs_one_deadline_and_is_used_again_when_it_answers(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario() -> Any:
        healthy = asyncio.Event()
        healthy.set()

        async def hangs_at_times(raw: Any, context: Any) -> Any:
            await healthy.wait()
            return good_reply(bundle, raw)

        async with cluster(bundle, CONFIG, node_1=hangs_at_times) as aggregator:
            assert (await aggregator.infer(inputs[:1])).answered.all()
            healthy.clear()
            answers = [await aggregator.infer(inputs[i : i + 1]) for i in range(10)]
            healthy.set()
            async with asyncio.timeout(TIMEOUT_S):
                while not (await aggregator.infer(inputs[:1])).answered.all():
                    pass
        return answers

    answers = asyncio.run(scenario())
    waited = [answer for answer in answers if answer.latency_s >= 0.9 * CONFIG.deadline_s]
    assert len(waited) == 1
    for i, answer in enumerate(answers):
        assert members(answer.mask) == (0, 2, 3)
        check_against_offline_fusion(bundle, answer, slice(i, i + 1))
    assert answers[0].failures["node-1"].startswith("silent for 0.5")
    assert answers[-1].failures["node-1"].startswith("left out after ")


def test_a_late_reply_never_alters_an_answer_or_joins_the_next(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> Any:
        late = asyncio.Event()

        async def answers_late(raw: Any, context: Any) -> Any:
            with contextlib.suppress(asyncio.CancelledError):
                await late.wait()
            return good_reply(bundle, raw)

        async with cluster(bundle, CONFIG, node_1=answers_late) as aggregator:
            first = await aggregator.infer(inputs[:1])
            before = first.logits.copy()
            late.set()
            second = await aggregator.infer(inputs[1:2])
        return first, before, second

    first, before, second = asyncio.run(scenario())
    np.testing.assert_array_equal(first.logits, before)
    check_against_offline_fusion(bundle, first, slice(1))
    if second.mask == 0b1101:
        check_against_offline_fusion(bundle, second, slice(1, 2))
    else:
        assert second.answered.all()


def test_the_clients_deadline_is_kept_although_the_policy_would_wait_longer(
    bundle: Bundle, inputs: NDArray[Any]
) -> None:
    async def scenario() -> Any:
        asked = 0

        async def hangs_from_the_second_request(raw: Any, context: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked > 1:
                await asyncio.Event().wait()
            return good_reply(bundle, raw)

        async with cluster(bundle, PATIENT, node_1=hangs_from_the_second_request) as aggregator:
            return await aggregator.infer(inputs[:1], remaining_s=0.5)

    answer = asyncio.run(scenario())
    assert members(answer.mask) == (0, 2, 3)
    assert answer.latency_s < 0.25 * TIMEOUT_S


def test_ready_follows_the_quorum_down_and_up_without_a_request(bundle: Bundle, inputs: NDArray[Any]) -> None:
    async def scenario() -> Any:
        well, seen = True, []

        async def fake(raw: Any, context: Any) -> Any:
            if not well:
                await context.abort(grpc.StatusCode.INTERNAL, "ill")
            return good_reply(bundle, raw)

        config = PolicyConfig(deadline_s=TIMEOUT_S, quorum=4, breaker_reset_s=0.05)
        async with cluster(bundle, config, node_1=fake) as aggregator:
            changes = aggregator.readiness()
            seen.append(await anext(changes))
            well = False
            with pytest.raises(QuorumError):
                await aggregator.infer(inputs[:1])
            seen.append(await anext(changes))
            well = True
            seen.append(await asyncio.wait_for(anext(changes), TIMEOUT_S))
        return seen

    assert asyncio.run(scenario()) == [True, False, True]


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (np.zeros((1, 8, 8), np.uint8), "expected [B, 1, 8, 8]"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_inputs_are_checked_before_any_node_is_asked(bundle: Bundle, batch: Any, text: Any) -> None:
    async def scenario() -> Any:
        asked = 0

        async def counts(raw: Any, context: Any) -> Any:
            nonlocal asked
            asked += 1
            return good_reply(bundle, raw)

        async with cluster(bundle, node_1=counts) as aggregator:
            probes = asked
            with pytest.raises(InputError) as caught:
                await aggregator.infer(batch)
        return asked - probes, str(caught.value)

    requests, message = asyncio.run(scenario())
    assert requests == 0
    assert text in message


def over_the_protocol(bundle: Bundle, call: Any) -> Any:
    """What a call makes of the stub of an aggregator whose node 1 refuses."""

    async def scenario() -> Any:
        async with cluster(bundle, node_1=refuses) as aggregator, serving_fused(aggregator) as stub:
            return await call(stub)

    return asyncio.run(scenario())


@pytest.fixture(scope="module")
def degraded(bundle: Bundle, inputs: NDArray[Any]) -> Any:
    """The reply to three samples without node 1."""
    return over_the_protocol(
        bundle, lambda stub: stub.ModelInfer(new_request("nonn", {"input": inputs[:3]}, {}, id="r1"))
    )


def test_over_the_protocol_an_answer_is_the_offline_fusion_under_its_id(bundle: Bundle, degraded: Any) -> None:
    assert degraded.id == "r1"
    check_against_offline_fusion(bundle, Answer.from_response(degraded, 0.0), slice(3))


def test_over_the_protocol_tensors_have_the_shapes_of_the_metadata(bundle: Bundle, degraded: Any) -> None:
    metadata = over_the_protocol(bundle, lambda stub: stub.ModelMetadata(pb.ModelMetadataRequest(name="nonn")))
    outputs = read_tensors(degraded.outputs, degraded.raw_output_contents)
    assert list(metadata.inputs[0].shape) == [-1, 1, 8, 8]
    assert {t.name: list(t.shape) for t in metadata.outputs} == {
        "logits": [-1, 10],
        "confidence": [-1],
        "answered": [-1, NUM_DEVICES],
        "expected_accuracy": [-1],
    }
    assert {name: [-1, *a.shape[1:]] for name, a in outputs.items()} == {
        t.name: list(t.shape) for t in metadata.outputs
    }
    assert {str(a.dtype) for name, a in outputs.items() if name != "answered"} == {"float32"}
    assert {len(a) for a in outputs.values()} == {3}


def test_over_the_protocol_an_answer_says_the_same_in_parameters_and_tensors(bundle: Bundle, degraded: Any) -> None:
    outputs = read_tensors(degraded.outputs, degraded.raw_output_contents)
    assert outputs["answered"].tolist() == [[True, False, True, True]] * 3
    assert degraded.parameters["nonn_mask"].int64_param == 0b1101
    assert degraded.parameters["nonn_degraded"].bool_param
    assert degraded.parameters["nonn_plan"].string_param == bundle.hash
    assert degraded.parameters["nonn_expected_accuracy"].double_param == bundle.table.accuracy[0b1101]
    assert outputs["expected_accuracy"] == pytest.approx(bundle.table.accuracy[0b1101])


def test_over_the_protocol_a_client_gets_only_the_outputs_that_it_names(bundle: Bundle, inputs: NDArray[Any]) -> None:
    request = new_request("nonn", {"input": inputs[:3]}, {})
    request.outputs.add(name="answered")
    part = over_the_protocol(bundle, lambda stub: stub.ModelInfer(request))
    assert [output.name for output in part.outputs] == ["answered"]


def test_over_the_protocol_a_degraded_aggregator_is_ready(bundle: Bundle) -> None:
    assert over_the_protocol(bundle, lambda stub: stub.ServerReady(pb.ServerReadyRequest())).ready


def test_over_the_protocol_a_request_for_another_bundle_is_refused(bundle: Bundle, inputs: NDArray[Any]) -> None:
    request = new_request("nonn", {"input": inputs[:3]}, {})
    request.parameters["nonn_bundle"].string_param = "f" * 64
    with pytest.raises(aio.AioRpcError) as caught:
        over_the_protocol(bundle, lambda stub: stub.ModelInfer(request))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@contextlib.asynccontextmanager
async def serving_fused(aggregator: Any) -> AsyncIterator[Any]:
    """A stub of an entered aggregator behind the protocol."""

    class Entered(FusedModel):
        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *args: Any) -> Any:
            return None

    async with serving(Entered(aggregator)) as address, aio.insecure_channel(address) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def test_an_inventory_is_read_as_it_was_written(tmp_path: Path) -> None:
    nodes = (
        Node(id="kitchen", address="10.0.0.2:50051", student=1),
        Node(id='Küche "2"', address="10.0.0.3:50051", student=1),
        Node(id="b", address="[::1]:9", student=0, foreign=True, model="resnet", output="pooled"),
    )
    write_inventory(tmp_path / "nodes.toml", nodes)
    assert load_inventory(tmp_path / "nodes.toml", num_students=2) == nodes


GOOD = '[[node]]\nid = "a"\naddress = "h:1"\nstudent = 0\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no nodes; write a [[node]] table"),
        ("node = 3", "no nodes"),
        ("nodes = []", "unknown key 'nodes'"),
        (GOOD.replace("address", "adress"), "unknown key 'node[0].adress'; did you mean 'node[0].address'?"),
        ('[[node]]\nid = "a"\nstudent = 0\n', "'node[0].address' is missing"),
        (GOOD.replace("= 0", '= "0"'), "'node[0].student' must be a whole number, not '0'"),
        (GOOD.replace('"a"', '""'), "node[0].id = '': must not be empty"),
        (GOOD.replace("h:1", "h"), "node[0] 'a': address 'h' is not host:port"),
        (GOOD.replace("h:1", "h:70000"), "address 'h:70000' is not host:port"),
        (GOOD.replace("h:1", "h:01"), "address 'h:01' is not host:port"),
        (GOOD.replace("h:1", "::1:5"), "address '::1:5' is not host:port (IPv6: [::1]:50051)"),
        (GOOD.replace("h:1", "unix:/tmp/s:5"), "address 'unix:/tmp/s:5' is not host:port"),
        (GOOD.replace('"a"', r'"a\u001b[31m"'), "node[0].id = 'a\\x1b[31m': has characters that cannot be printed"),
        (GOOD.replace("= 0", "= 4"), "node[0] 'a': student 4; the bundle has 0 to 3"),
        (GOOD + GOOD.replace("h:1", "h:2").replace("= 0", "= 1"), "node[1] 'a': id 'a' is used by node[0]"),
        (GOOD + GOOD.replace('"a"', '"b"').replace("= 0", "= 1"), "node[1] 'b': address 'h:1' is used by node[0]"),
        (GOOD + 'model = "m"', "node[0].model = 'm': goes with foreign = true"),
        (GOOD + 'output = "o"', "node[0].output = 'o': goes with foreign = true"),
        (GOOD + "foreign = 1", "'node[0].foreign' must be true or false, not 1"),
        ("[[node", "not a TOML file"),
    ],
)
def test_a_wrong_inventory_is_an_error_that_names_file_node_and_key(tmp_path: Path, text: Any, message: Any) -> None:
    file = tmp_path / "nodes.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_inventory(file, num_students=4)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
