"""Noise and lies: no server ends, each message gets the status that it deserves, and no lie is fused.

The long form, with 10,000 messages, is ``make soak``.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import psutil
import pytest
from numpy.typing import NDArray

from nonn.bundle import Bundle, write_bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import InputError
from nonn.rpc.v1 import inference_pb2 as pb
from tests.fuzzing import (
    LyingNode,
    Server,
    decode,
    features_of_reply,
    fuzz_connections,
    fuzz_replies,
    fuzz_requests,
    verdict_on_request,
)
from tests.serving import TIMEOUT_S, running_aggregator
from tests.toys import SHAPE, WIDTH, linear_student

NUM_DEVICES = 3
NUM_MESSAGES = 250
NUM_CONNECTIONS = 80
NUM_LIES = 100
SEED = 7
OUTPUTS = ("logits", "confidence", "answered", "expected_accuracy")


@pytest.fixture(scope="module")
def aggregator(bundle: Bundle, cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    addresses = [state.address for state in cluster.states()]
    folder = tmp_path_factory.mktemp("aggregator")
    with running_aggregator(bundle.path, addresses, folder, "--deadline", str(TIMEOUT_S)) as ready:
        yield ready


@pytest.fixture(scope="module")
def students(bundle: Bundle) -> Any:
    sessions = [onnxruntime.InferenceSession(str(bundle.student_path(i))) for i in range(NUM_DEVICES)]
    return [lambda batch, s=session: s.run(["features"], {"input": batch})[0] for session in sessions]


@pytest.fixture(params=["node", "aggregator"])
def server(
    request: pytest.FixtureRequest, bundle: Bundle, cluster: LocalCluster, aggregator: Any, students: Any
) -> Any:
    """A live server and its process."""
    if request.param == "node":
        state = cluster.states()[1]
        return Server(state.address, "student-1", ("features",), bundle, students[1]), psutil.Process(state.pid)

    def fused(batch: Any) -> Any:
        return bundle.head.logits({i: student(batch) for i, student in enumerate(students)})

    return Server(aggregator["address"], "nonn", OUTPUTS, bundle, fused), psutil.Process(aggregator["pid"])


def test_every_changed_request_gets_the_status_that_it_deserves(server: Any, inputs: NDArray[Any]) -> None:
    under_fire, process = server
    fuzz_requests(under_fire, inputs[:1], NUM_MESSAGES // 4, SEED)  # opens what is opened once
    before = process.memory_info().rss
    seen = fuzz_requests(under_fire, inputs[:1], NUM_MESSAGES, SEED + 1)
    assert sum(seen.values()) >= NUM_MESSAGES
    # Not only one kind of mistake was made.
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"} == set(seen)
    assert min(seen.values()) >= NUM_MESSAGES // 100
    assert process.memory_info().rss < 1.1 * before


def test_a_server_lives_through_connections_that_send_noise(server: Any, inputs: NDArray[Any]) -> None:
    under_fire, process = server
    fuzz_connections(under_fire.address, NUM_CONNECTIONS // 5, SEED)
    before = process.memory_info().rss
    fuzz_connections(under_fire.address, NUM_CONNECTIONS, SEED + 1)
    assert process.is_running()
    assert fuzz_requests(under_fire, inputs[:1], 20, SEED + 2)["OK"]
    assert process.memory_info().rss < 1.1 * before


@pytest.fixture(scope="module")
def lied_to(bundle: Bundle, cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A liar in the place of node 0, and a client of the aggregator that asks it."""
    addresses = [state.address for state in cluster.states()]
    folder = tmp_path_factory.mktemp("lied-to")
    options = ("--deadline", str(TIMEOUT_S))
    with (
        LyingNode(addresses[0]) as liar,
        running_aggregator(bundle.path, [liar.address, *addresses[1:]], folder, *options) as ready,
        Client(ready["address"], 2 * TIMEOUT_S) as client,
    ):
        yield liar, client


def test_no_changed_reply_is_fused_unless_it_is_a_valid_one(bundle: Bundle, inputs: NDArray[Any], lied_to: Any) -> None:
    liar, client = lied_to
    seen = fuzz_replies(client, liar, bundle, inputs, NUM_LIES, SEED)
    assert min(seen["refused"], seen["fused"]) >= NUM_LIES // 20


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_node_may_fail_with_any_status_and_costs_only_itself(inputs: NDArray[Any], lied_to: Any, code: Any) -> None:
    liar, client = lied_to
    details = "no\x00\n" + "é" * 500
    liar.lying = True
    try:
        liar.lies.put((code, details))
        answer = client.infer(inputs[:1])
    finally:
        liar.lying = False
        liar.asked.get(timeout=TIMEOUT_S)
    assert answer.mask == 0b110
    assert answer.failures["node-0"]
    assert client.infer(inputs[:1]).mask == 0b111


def test_a_node_that_is_no_grpc_server_costs_only_itself(
    bundle: Bundle, cluster: LocalCluster, inputs: NDArray[Any], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_noise() -> None:
            noise = np.random.default_rng(SEED)
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(noise.bytes(1000))

        thread = threading.Thread(target=answer_noise)
        thread.start()
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}", *(state.address for state in cluster.states()[1:])]
        try:
            with (
                running_aggregator(bundle.path, addresses, tmp_path) as ready,
                Client(ready["address"], TIMEOUT_S) as client,
            ):
                masks = {client.infer(inputs[:1]).mask for _ in range(20)}
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT_S)
    assert masks == {0b110}


def test_values_that_no_student_can_take_are_the_clients_fault_and_switch_no_node_off(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Finite, so the request is valid; but every student's features of them overflow."""
    loud = {i: linear_student(np.full((64, WIDTH), 10, np.float32)) for i in range(NUM_DEVICES)}
    arrays = {name: bundle.arrays(name) for name in bundle.manifest.files}
    overflowing = write_bundle(tmp_path / "bundle", bundle.manifest, loud, arrays)
    sane, absurd = (np.full((1, *SHAPE), value, np.float32) for value in (1, 3e38))
    with LocalCluster(overflowing.path) as cluster, Client(cluster.address, TIMEOUT_S) as client:
        for _ in range(5):
            with pytest.raises(InputError):
                client.infer(absurd)
            assert client.infer(sane).mask == 0b111
        assert {node["state"] for node in client.metadata().nodes} == {"up"}


def test_the_oracle_sees_what_it_should(bundle: Bundle, inputs: NDArray[Any]) -> None:
    """The fuzz tests are worth what their oracle is: it must refuse what each single rule refuses."""
    request = pb.ModelInferRequest(model_name="nonn", id="1")
    request.inputs.add(name="input", datatype="UINT8", shape=(1, 1, 8, 8))
    request.raw_input_contents.append(inputs[0].tobytes())
    raw = request.SerializeToString()
    assert verdict_on_request(raw, "nonn", "v", OUTPUTS, bundle).code is grpc.StatusCode.OK
    assert verdict_on_request(raw, "other", "v", OUTPUTS, bundle).code is grpc.StatusCode.NOT_FOUND
    assert verdict_on_request(raw[:-1], "nonn", "v", OUTPUTS, bundle).code is grpc.StatusCode.INVALID_ARGUMENT
    reply = pb.ModelInferResponse(id="1")
    reply.parameters["nonn_bundle"].string_param = bundle.hash
    reply.outputs.add(name="features", datatype="FP32", shape=(1, 4))
    reply.raw_output_contents.append(np.arange(4, dtype=np.float32).tobytes())
    good = reply.SerializeToString()
    np.testing.assert_array_equal(features_of_reply(good, request, bundle, 4), [[0, 1, 2, 3]])
    assert features_of_reply(good, request, bundle, 5) is None
    assert features_of_reply(good, pb.ModelInferRequest(id="2"), bundle, 4) is None
    assert decode(reply.outputs, reply.raw_output_contents)["features"] == ("FP32", (1, 4), [0, 1, 2, 3])
    for spoil in (
        lambda r: r.ClearField("parameters"),
        lambda r: r.outputs[0].shape.append(2),
        lambda r: setattr(r.outputs[0], "datatype", "FP64"),
        lambda r: r.raw_output_contents.__setitem__(0, np.full(4, np.nan, np.float32).tobytes()),
    ):
        bad = pb.ModelInferResponse.FromString(good)
        spoil(bad)
        assert features_of_reply(bad.SerializeToString(), request, bundle, 4) is None
