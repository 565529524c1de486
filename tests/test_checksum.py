"""One flipped bit in a message is an error of its link, never another answer; messages without checksum still work."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.inventory import Node
from nonn.aggregator.reply import ReplyReader
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.errors import DataLossError, InputError
from nonn.rpc.checksum import check_sealed, model_name, seal
from nonn.rpc.codec import Request, write_request, write_response
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import read_parameters
from tests.fanout import cluster, good_reply
from tests.serving import fake_node
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 3
BATCH = 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("checksum") / "bundle", num_devices=NUM_DEVICES)


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def request_of(inputs: Any) -> bytes:
    return model_name("student-0") + write_request("7", {"input": inputs}, {"nonn_bundle": "b"})


def test_no_flipped_bit_of_a_reply_changes_features(bundle: Bundle) -> None:
    features = np.arange(BATCH * 4, dtype=np.float32).reshape(BATCH, 4)
    request = Request.parse(request_of(np.zeros((BATCH, 1, 8, 8), np.uint8)))
    reply = write_response("student-0", "", request, {"features": features}, {"nonn_bundle": bundle.hash})
    reader = ReplyReader(Node(id="n", address="a:1", student=0), bundle.manifest.students[0], bundle.hash)
    assert np.array_equal(reader.read(reply, "7", BATCH), features)
    lost = 0
    for bit in range(8 * len(reply)):
        try:
            read = reader.read(flipped(reply, bit), "7", BATCH)
        except (DataLossError, InputError) as exc:
            lost += isinstance(exc, DataLossError)
        else:  # the flip has damaged the checksum's own name, so it is an unknown parameter
            assert np.array_equal(read, features)
    assert lost > 0.85 * 8 * len(reply)


def test_no_flipped_bit_of_a_request_changes_its_inputs() -> None:
    inputs = toy_data(BATCH, seed=1)[0]
    raw = request_of(inputs)
    for bit in range(8 * len(raw)):
        with contextlib.suppress(DataLossError, DecodeError, InputError):
            request = Request.parse(flipped(raw, bit), "student-0")
            if request.model_name == "student-0":
                assert np.array_equal(request.tensors()["input"], inputs)
                assert request.id == "7"
                assert request.bundle == "b"


@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(1, 2**32 - 1))
def test_no_burst_of_32_bits_passes(body: bytes, where: int, pattern: int) -> None:
    raw = seal(body)
    check_sealed(raw)
    if body:
        place = where % (8 * len(body))
        number = int.from_bytes(body, "big") ^ (pattern << max(0, 8 * len(body) - place - 32))
        changed = (number & ((1 << 8 * len(body)) - 1)).to_bytes(len(body), "big")
        if changed != body:
            with pytest.raises(DataLossError, match="altered on the way"):
                check_sealed(changed + raw[len(body) :])


@pytest.mark.parametrize("raw", [b"", b"short", bytes(100)])
def test_what_has_no_checksum_is_accepted(raw: bytes) -> None:
    check_sealed(raw)
    check_sealed(raw, b"x")


def test_a_request_for_another_model_is_not_called_altered() -> None:
    check_sealed(request_of(np.zeros((1, 1, 8, 8), np.uint8)), model_name("student-10"))


def test_other_programs_read_an_ordinary_parameter() -> None:
    raw = request_of(np.zeros((1, 1, 8, 8), np.uint8))
    parameters = read_parameters(pb.ModelInferRequest.FromString(raw).parameters)
    assert set(parameters) == {"nonn_bundle", "nonn_crc32"}
    assert len(str(parameters["nonn_crc32"])) == 8


@pytest.mark.parametrize("sealed", [True, False])
def test_a_flipped_bit_is_the_failure_of_its_node_if_the_node_sends_a_checksum(bundle: Bundle, sealed: bool) -> None:
    asked = list[bool]()

    async def faulty(raw: bytes, context: Any) -> bytes:
        asked.append(b"nonn_crc32" in raw)
        reply = bytes(good_reply(bundle, raw))
        reply = seal(reply) if sealed else reply
        place = reply.index(np.ones(4, np.float32).tobytes())  # of the features, which stay finite
        return flipped(reply, 8 * place + 3)

    async def scenario() -> Any:
        async with cluster(bundle, fakes={1: faulty}) as aggregator:
            return await aggregator.infer(toy_data(BATCH, seed=1)[0])

    answer = asyncio.run(scenario())
    assert all(asked)  # requests have a checksum too
    assert answer.answered.tolist() == [True, not sealed, True]
    if sealed:
        assert answer.statuses["node-1"] is ReplyStatus.MALFORMED
        assert "altered on the way" in answer.failures["node-1"]


def test_a_node_refuses_an_altered_request_as_data_loss(bundle: Bundle) -> None:
    from tests.fanout import student
    from tests.serving import serving

    async def scenario() -> Any:
        async with serving(student(bundle, 0)) as address, grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            raw = model_name("student-0") + write_request("7", {"input": toy_data(1, seed=1)[0]}, {})
            await call(raw)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(flipped(raw, 8 * 60))
            return caught.value.code()

    assert asyncio.run(scenario()) is grpc.StatusCode.DATA_LOSS


def test_a_client_refuses_an_altered_answer(tmp_path: Path) -> None:
    async def altered(raw: bytes, context: Any) -> bytes:
        return flipped(seal(pb.ModelInferResponse(model_name="nonn", id="1").SerializeToString()), 20)

    async def scenario() -> None:
        async with fake_node(altered) as address:

            def ask() -> None:
                with Client(address) as client, pytest.raises(DataLossError, match=f"{address}: .* altered"):
                    client.infer(np.zeros((1, 1, 8, 8), np.uint8))

            await asyncio.to_thread(ask)

    asyncio.run(scenario())
