"""The Open Inference Protocol, call by call, on a live node and on a live aggregator alike."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.cluster import LocalCluster
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request, read_parameters, read_tensors
from tests.oip import make_stubs
from tests.serving import TIMEOUT_S, process, run, running_node
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 3
STUDENT = 1
SERVICE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class Target:
    """A live server, and what it should answer for the inputs."""

    address: str
    model: str
    output: str
    inputs: Any
    expected: Any
    stub: Any


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("conformance") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture(scope="module")
def cluster(bundle: Bundle) -> Iterator[Any]:
    with LocalCluster(bundle.path, deadline_s=TIMEOUT_S) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=["node", "aggregator"])
def target(request: pytest.FixtureRequest, bundle: Bundle, cluster: LocalCluster) -> Iterator[Any]:
    inputs, _ = toy_data(200, seed=3)
    features, _ = bundle.features
    if request.param == "node":
        address, model, output = cluster.states()[STUDENT].address, f"student-{STUDENT}", "features"
        expected: NDArray[Any] = features[STUDENT]
    else:
        address, model, output = cluster.address, "nonn", "logits"
        expected = bundle.head.logits(dict(enumerate(features)))
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        yield Target(address, model, output, inputs, expected, stub)


def check(target: Any, response: Any, rows: Any) -> None:
    outputs = read_tensors(response.outputs, response.raw_output_contents)
    np.testing.assert_allclose(outputs[target.output], target.expected[rows], rtol=1e-4, atol=1e-4)


def refusal(call: Any, request: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=TIMEOUT_S)
    return caught.value.code(), caught.value.details()


def test_it_is_live_and_ready_and_so_is_its_model(bundle: Bundle, target: Any) -> None:
    assert target.stub.ServerLive(pb.ServerLiveRequest()).live
    assert target.stub.ServerReady(pb.ServerReadyRequest()).ready
    for version in ("", bundle.hash[:12]):
        assert target.stub.ModelReady(pb.ModelReadyRequest(name=target.model, version=version)).ready


def test_server_metadata_names_the_server_and_its_version(target: Any) -> None:
    metadata = target.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (metadata.name, metadata.version) == ("nonn", run("nonn", "--version").stdout.split()[1])


def test_an_answer_has_the_tensors_that_model_metadata_promises(target: Any) -> None:
    metadata = target.stub.ModelMetadata(pb.ModelMetadataRequest(name=target.model))
    assert (metadata.name, [t.name for t in metadata.inputs]) == (target.model, ["input"])
    assert metadata.versions
    response = target.stub.ModelInfer(new_request(target.model, {"input": target.inputs[:5]}, {}, "x"))
    assert (response.model_name, response.model_version, response.id) == (target.model, metadata.versions[0], "x")
    assert [(t.name, t.datatype) for t in response.outputs] == [(t.name, t.datatype) for t in metadata.outputs]
    for promised, given in zip(metadata.outputs, response.outputs, strict=True):
        assert [5 if size == -1 else size for size in promised.shape] == list(given.shape)
        assert not given.contents.ByteSize()
    assert len(response.raw_output_contents) == len(response.outputs)


@pytest.mark.parametrize("call", ["ModelReady", "ModelMetadata", "ModelInfer"])
def test_another_model_or_version_is_not_found(target: Any, call: Any) -> None:
    key = "model_name" if call == "ModelInfer" else "name"
    version = "model_version" if call == "ModelInfer" else "version"
    kind = {"ModelReady": pb.ModelReadyRequest, "ModelMetadata": pb.ModelMetadataRequest}.get(
        call, pb.ModelInferRequest
    )
    for names in ({key: "nobody"}, {}, {key: target.model, version: "7"}):
        code, details = refusal(getattr(target.stub, call), kind(**names))
        assert code is grpc.StatusCode.NOT_FOUND
        assert f"this server has '{target.model}'" in details


@pytest.mark.parametrize("batch", [1, 7, 200])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_raw_inputs_of_any_batch_and_either_type_give_the_same_answer(target: Any, dtype: Any, batch: Any) -> None:
    rows = slice(batch)
    request = new_request(target.model, {"input": target.inputs[rows].astype(dtype)}, {})
    check(target, target.stub.ModelInfer(request), rows)


@pytest.mark.parametrize(("datatype", "field"), [("UINT8", "uint_contents"), ("FP32", "fp32_contents")])
def test_typed_inputs_give_the_answer_of_raw_ones(target: Any, datatype: Any, field: Any) -> None:
    rows = slice(3, 6)
    request = pb.ModelInferRequest(model_name=target.model)
    tensor = request.inputs.add(name="input", datatype=datatype, shape=target.inputs[rows].shape)
    getattr(tensor.contents, field).extend(target.inputs[rows].ravel().tolist())
    check(target, target.stub.ModelInfer(request), rows)


def test_requests_that_are_expensive_to_parse_are_invalid_arguments(target: Any) -> None:
    typed = pb.ModelInferRequest(model_name=target.model)
    tensor = typed.inputs.add(name="input", datatype="UINT8", shape=(1024, *target.inputs.shape[1:]))
    tensor.contents.uint_contents.extend([0] * math.prod(tensor.shape))
    many = pb.ModelInferRequest(model_name=target.model)
    for _ in range(1000):
        many.inputs.add()
    for request, text in ((typed, "send raw_input_contents"), (many, "more than 256 fields")):
        code, details = refusal(target.stub.ModelInfer, request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text in details


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda r: r.inputs[0].contents.uint_contents.append(1), "raw and typed contents are both given"),
        (lambda r: r.raw_input_contents.append(b""), "2 raw contents for 1 tensors"),
        (lambda r: r.raw_input_contents.pop(), "0 values, but shape"),
        (lambda r: r.inputs[0].shape.append(2), "shape [1, 1, 8, 8, 2], expected [B, 1, 8, 8]"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 2), "64 bytes of raw contents, but UINT8 [2, 1, 8, 8] needs 128"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "shape [-1, 1, 8, 8], expected [B, 1, 8, 8]"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 2**62), "4611686018427387904 samples; the limit is"),
        (lambda r: setattr(r.inputs[0], "datatype", "BYTES"), "unknown datatype 'BYTES'"),
        (lambda r: setattr(r.inputs[0], "datatype", "INT8"), "dtype int8"),
        (lambda r: setattr(r.inputs[0], "name", "x"), "the model accepts one tensor, 'input'"),
        (lambda r: r.inputs.pop(), "accepts one tensor, 'input'; the request contains nothing"),
        (lambda r: r.ClearField("inputs") or r.ClearField("raw_input_contents"), "the request contains nothing"),
        (lambda r: r.outputs.add(name="mood"), "no output 'mood'"),
    ],
)
def test_a_request_that_contradicts_itself_or_the_model_is_an_invalid_argument(
    target: Any, spoil: Any, text: Any
) -> None:
    request = new_request(target.model, {"input": target.inputs[:1]}, {})
    spoil(request)
    code, details = refusal(target.stub.ModelInfer, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text in details


def test_outputs_come_in_the_order_in_which_they_are_asked_for(target: Any) -> None:
    names = [t.name for t in target.stub.ModelMetadata(pb.ModelMetadataRequest(name=target.model)).outputs][::-1]
    request = new_request(target.model, {"input": target.inputs[:2]}, {})
    for name in names:
        request.outputs.add(name=name)
    response = target.stub.ModelInfer(request)
    assert [output.name for output in response.outputs] == names
    check(target, response, slice(2))


def test_parameters_of_others_are_ignored_and_ours_come_back(bundle: Bundle, target: Any) -> None:
    request = new_request(
        target.model, {"input": target.inputs[:1]}, {"priority": 3, "who": "me", "nonn_bundle": bundle.hash}
    )
    request.inputs[0].parameters["binary_data_size"].int64_param = 64
    request.parameters["empty"].SetInParent()
    response = target.stub.ModelInfer(request)
    check(target, response, slice(1))
    parameters = read_parameters(response.parameters)
    assert parameters
    assert all(name.startswith("nonn_") for name in parameters)
    code, _ = refusal(target.stub.ModelInfer, new_request(target.model, {}, {"nonn_bundle": "f" * 64}))
    assert code is grpc.StatusCode.FAILED_PRECONDITION


def test_a_call_that_the_protocol_does_not_have_is_unimplemented(target: Any) -> None:
    with grpc.insecure_channel(target.address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelConfig")
        assert refusal(call, b"")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_message_fail_alone(target: Any) -> None:
    with grpc.insecure_channel(target.address) as channel:
        for call in ("ModelInfer", "ModelMetadata", "ServerLive"):
            code, details = refusal(channel.unary_unary(f"/{SERVICE}/{call}"), b"\xff" * 40)
            assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, f"40 bytes that are not a valid {call}Request")
    check(target, target.stub.ModelInfer(new_request(target.model, {"input": target.inputs[:1]}, {})), slice(1))


def test_the_health_check_covers_the_server_and_its_service_only(target: Any) -> None:
    with grpc.insecure_channel(target.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S).status == SERVING
        code, _ = refusal(stub.Check, health_pb2.HealthCheckRequest(service="nobody"))
        assert code is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=TIMEOUT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


@contextlib.contextmanager
def watching(address: Any, service: Any) -> Iterator[Any]:
    """A queue of the statuses that grpc.health.v1.Watch reports; None at its end."""
    seen: queue.Queue[Any] = queue.Queue()

    def follow(statuses: Any) -> None:
        with contextlib.suppress(grpc.RpcError):
            for status in statuses:
                seen.put(status.status)
        seen.put(None)

    with grpc.insecure_channel(address) as channel:
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        thread = threading.Thread(target=follow, args=(statuses,))
        thread.start()
        try:
            yield seen
        finally:
            statuses.cancel()
            thread.join(TIMEOUT_S)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_health_watch_of_a_node_reports_its_shutdown_first(bundle: Bundle, service: Any) -> None:
    with running_node(bundle.path, 0) as (child, ready), watching(ready["address"], service) as seen:
        assert seen.get(timeout=TIMEOUT_S) == SERVING
        child.terminate()
        assert seen.get(timeout=TIMEOUT_S) == NOT_SERVING
        assert seen.get(timeout=TIMEOUT_S) is None
        assert child.wait(TIMEOUT_S) == 0


def test_a_health_watch_of_an_aggregator_reports_a_lost_and_a_regained_quorum(bundle: Bundle) -> None:
    inputs, _ = toy_data(1, seed=3)
    with (
        LocalCluster(bundle.path, quorum=NUM_DEVICES) as cluster,
        watching(cluster.address, SERVICE) as seen,
        grpc.insecure_channel(cluster.address) as channel,
    ):
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        assert seen.get(timeout=TIMEOUT_S) == SERVING
        cluster.kill(0)
        code, details = refusal(stub.ModelInfer, new_request("nonn", {"input": inputs}, {}))
        assert (code, "node-0" in details) == (grpc.StatusCode.UNAVAILABLE, True)
        assert seen.get(timeout=TIMEOUT_S) == NOT_SERVING
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        assert not stub.ModelReady(pb.ModelReadyRequest(name="nonn")).ready
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        cluster.restart(0)
        assert seen.get(timeout=TIMEOUT_S) == SERVING


def reflected(address: Any, **question: Any) -> Any:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(**question)
        return next(iter(stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S)))


@contextlib.contextmanager
def reflecting(kind: Any, bundle: Bundle, cluster: LocalCluster, tmp_path: Path) -> Iterator[Any]:
    """A server that was started with --reflection, its address and its model."""
    if kind == "node":
        with running_node(bundle.path, STUDENT, "--reflection") as (_, ready):
            yield ready["address"], f"student-{STUDENT}"
    elif kind == "joins":
        token = tmp_path / "token"
        token.write_text("a-token-of-enough-characters")
        arguments: tuple[str | Path, ...] = ("nonn", "serve", bundle.path, "--joins", "--join-token-file", token)
        with process(*arguments, "--reflection", "--watch-stdin") as child:
            assert child.stdout is not None
            yield json.loads(child.stdout.readline())["address"], "nonn"
    else:
        inventory = tmp_path / "nodes.toml"
        write_inventory(
            inventory, [Node(id=f"node-{s.node}", address=s.address, student=s.node) for s in cluster.states()]
        )
        arguments = ("nonn", "serve", bundle.path, "--inventory", inventory, "--reflection", "--watch-stdin")
        with process(*arguments) as child:
            assert child.stdout is not None
            yield json.loads(child.stdout.readline())["address"], "nonn"


@pytest.mark.parametrize("kind", ["node", "aggregator", "joins"])
def test_with_reflection_a_client_without_any_proto_file_asks_for_an_answer(
    bundle: Bundle, cluster: LocalCluster, tmp_path: Path, kind: Any
) -> None:
    with reflecting(kind, bundle, cluster, tmp_path) as (address, model):
        services = {s.name for s in reflected(address, list_services="").list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= services
        assert ("nonn.rpc.v1.Fleet" in services) is (kind == "joins")
        pool = DescriptorPool()
        for service in services:  # each is described in full, whatever other services there are
            files = reflected(address, file_containing_symbol=service).file_descriptor_response.file_descriptor_proto
            for file in reversed(files):  # what a file imports comes after it
                pool.Add(FileDescriptorProto.FromString(file))
            assert pool.FindServiceByName(service)
        method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelMetadata")
        asked, answered = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/ModelMetadata",
                request_serializer=asked.SerializeToString,
                response_deserializer=answered.FromString,
            )
            assert [t.name for t in call(asked(name=model), timeout=TIMEOUT_S).inputs] == ["input"]
        unknown = reflected(address, file_containing_symbol="inference.Nobody")
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_without_the_flag_there_is_no_reflection(target: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        reflected(target.address, list_services="")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_without_the_extra_the_error_names_the_install_command_of_reflection(bundle: Bundle) -> None:
    code = f"""
import sys
sys.modules["grpc_reflection.v1alpha"] = None
from nonn_device.cli import main
sys.exit(main(["serve", {str(bundle.path)!r}, "--student", "0", "--reflection"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 6
    assert "pip install 'nonn[serve]'" in done.stderr


def test_two_copies_of_the_protocol_live_in_one_process(bundle: Bundle, cluster: LocalCluster, tmp_path: Path) -> None:
    stubs = make_stubs(tmp_path / "stubs")
    node = cluster.states()[0].address
    # Either order of importing, since the second copy is the one that would end the process.
    for first, second in (("open_inference_pb2", "nonn.client"), ("nonn.client", "open_inference_pb2")):
        code = f"""
import sys
sys.path.insert(0, {str(stubs)!r})
import {first}, {second}
import grpc, numpy as np
import open_inference_pb2 as theirs, open_inference_pb2_grpc
from nonn.client import Client
from nonn.rpc.v1 import inference_pb2 as ours
assert theirs.ModelInferRequest is not ours.ModelInferRequest
with Client({cluster.address!r}) as client, grpc.insecure_channel({node!r}) as channel:
    assert client.infer(np.zeros((1, 1, 8, 8), np.uint8)).mask == {(1 << NUM_DEVICES) - 1}
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    assert stub.ModelReady(theirs.ModelReadyRequest(name="student-0")).ready
print("both")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.stdout == "both\n", done.stderr
