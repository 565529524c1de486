from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nonn_device.node import StudentModel
from nonn_device.runtime import OnnxRuntime
from numpy.typing import NDArray

from nonn.bundle import Bundle, load_bundle
from nonn.errors import BundleError
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request, read_parameters, read_tensors
from tests.agreement import assert_features_agree
from tests.serving import TIMEOUT_S, process, run, running_node, serving
from tests.toys import linear_student, toy_bundle, toy_data

STUDENT = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("node") / "bundle", num_devices=4)


@pytest.fixture(scope="module")
def node(bundle: Bundle) -> Iterator[Any]:
    with running_node(bundle.path, STUDENT) as (_, ready):
        yield ready


@pytest.fixture(scope="module")
def stub(node: Any) -> Iterator[Any]:
    with grpc.insecure_channel(node["address"]) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def infer(
    stub: Any, inputs: NDArray[Any], parameters: Any = None, model: Any = f"student-{STUDENT}", **options: Any
) -> Any:
    request = new_request(model, {"input": inputs}, parameters or {}, id="7")
    for field, value in options.items():
        setattr(request, field, value)
    response = stub.ModelInfer(request, timeout=TIMEOUT_S)
    return response, read_tensors(response.outputs, response.raw_output_contents)


def refusal(stub: Any, *args: Any, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        infer(stub, *args, **options)
    return caught.value.code(), caught.value.details()


def test_the_ready_line_has_node_address_and_bundle(bundle: Bundle, node: Any) -> None:
    assert node["event"] == "ready"
    assert node["node"] == STUDENT
    assert node["address"].startswith("127.0.0.1:")
    assert node["bundle"] == bundle.hash
    assert node["pid"] > 0


def test_features_of_a_batch_equal_those_recorded_in_the_bundle(bundle: Bundle, stub: Any) -> None:
    recorded, _ = bundle.features
    inputs, _ = toy_data(200, seed=3)
    response, outputs = infer(stub, inputs)
    assert_features_agree(outputs["features"], recorded[STUDENT])
    assert outputs["features"].dtype == np.float32
    assert response.id == "7"
    assert read_parameters(response.parameters)["nonn_bundle"] == bundle.hash


def test_float_inputs_give_the_same_features_as_the_same_bytes(stub: Any) -> None:
    inputs, _ = toy_data(3, seed=5)
    _, from_bytes = infer(stub, inputs)
    _, from_floats = infer(stub, inputs.astype(np.float32))
    np.testing.assert_array_equal(from_bytes["features"], from_floats["features"])


def test_metadata_has_part_bundle_and_runtime(bundle: Bundle, stub: Any) -> None:
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=f"student-{STUDENT}"))
    student = bundle.manifest.students[STUDENT]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("input", "UINT8", [-1, 1, 8, 8])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("features", "FP32", [-1, 4])]
    properties = dict(metadata.properties)
    assert properties.pop("nonn_runtime").startswith("onnxruntime 1.")
    assert int(properties.pop("nonn_rss_bytes")) > 0
    assert properties.pop("nonn_version")
    assert properties == {
        "nonn_node": "",
        "nonn_bundle": bundle.hash,
        "nonn_part": str(student.part),
        "nonn_device": str(STUDENT),
        "nonn_sha256": student.sha256,
        "nonn_dtype": "float32",
        "nonn_weights": "float32",
        "nonn_max_batch": "1024",
    }


def test_the_other_calls_of_the_protocol_answer(stub: Any) -> None:
    name = f"student-{STUDENT}"
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name=name)).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "nonn"


def test_the_standard_health_check_answers_for_server_and_service(node: Any) -> None:
    with grpc.insecure_channel(node["address"]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            checked = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert checked.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (np.zeros((1, 3, 8, 8), np.uint8), "expected [B, 1, 8, 8]"),
        (np.zeros((1, 1, 8, 8), np.int32), "send uint8 (UINT8) or float32 (FP32)"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "NaN or infinity in sample 0"),
        (np.full((1, 1, 8, 8), np.inf, np.float32), "NaN or infinity in sample 0"),
        (np.zeros((0, 1, 8, 8), np.uint8), "an empty batch"),
    ],
)
def test_inputs_that_the_student_cannot_take_are_refused(stub: Any, inputs: NDArray[Any], text: Any) -> None:
    code, details = refusal(stub, inputs)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text in details


def test_raw_contents_of_another_size_than_the_shape_are_refused(stub: Any) -> None:
    request = new_request(f"student-{STUDENT}", {"input": np.zeros((1, 1, 8, 8), np.uint8)}, {})
    request.raw_input_contents[0] = bytes(63)
    with pytest.raises(grpc.RpcError, match="63 bytes of raw contents") as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_output_is_refused(stub: Any) -> None:
    request = new_request(f"student-{STUDENT}", {"input": np.zeros((1, 1, 8, 8), np.uint8)}, {})
    request.outputs.add(name="logits")
    with pytest.raises(grpc.RpcError, match="no output 'logits'; the model has features") as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_metadata_has_the_batch_limit_and_larger_batches_are_refused(bundle: Bundle) -> None:
    with (
        running_node(bundle.path, STUDENT, "--max-batch", "2") as (_, ready),
        grpc.insecure_channel(ready["address"]) as channel,
    ):
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=f"student-{STUDENT}"))
        assert metadata.properties["nonn_max_batch"] == "2"
        infer(stub, np.zeros((2, 1, 8, 8), np.uint8))
        code, details = refusal(stub, np.zeros((3, 1, 8, 8), np.uint8))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "3 samples; the limit is 2 per request" in details
        # A message that no batch of two could be is not even read.
        code, details = refusal(stub, np.zeros((3000, 1, 8, 8), np.uint8))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in details
        assert stub.ServerLive(pb.ServerLiveRequest()).live


def test_finite_inputs_that_overflow_the_student_are_the_callers_fault(bundle: Bundle) -> None:
    class Overflows:
        name = "overflows"

        def run(self, batch: Any) -> Any:
            with np.errstate(over="ignore"):
                return batch.reshape(len(batch), -1)[:, :4] * np.float32(10)

    async def scenario() -> Any:
        async with (
            serving(StudentModel(bundle, 0, Overflows())) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(new_request("student-0", {"input": np.full((1, 1, 8, 8), 3e38, np.float32)}, {}))
        return caught.value

    refused = asyncio.run(scenario())
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "features are not finite" in refused.details()


def test_another_model_or_version_is_not_found(bundle: Bundle, stub: Any) -> None:
    inputs = np.zeros((1, 1, 8, 8), np.uint8)
    code, details = refusal(stub, inputs, model="student-0")
    assert code is grpc.StatusCode.NOT_FOUND
    assert "no model 'student-0' here; this server has 'student-3'" in details
    assert refusal(stub, inputs, model_version="1")[0] is grpc.StatusCode.NOT_FOUND
    infer(stub, inputs, model_version=bundle.hash[:12])


def test_a_request_for_another_bundle_is_refused_and_one_for_this_bundle_is_not(bundle: Bundle, stub: Any) -> None:
    inputs = np.zeros((1, 1, 8, 8), np.uint8)
    code, details = refusal(stub, inputs, {"nonn_bundle": "f" * 64})
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert bundle.hash[:12] in details
    assert "ffffffffffff" in details
    infer(stub, inputs, {"nonn_bundle": bundle.hash})


def test_health_answers_while_the_student_computes(bundle: Bundle) -> None:
    class SlowRuntime:
        """Computes until it is released."""

        name = "slow"
        started, release = threading.Event(), threading.Event()

        def run(self, batch: Any) -> Any:
            self.started.set()
            assert self.release.wait(TIMEOUT_S)
            return np.zeros((len(batch), 4), np.float32)

    async def scenario() -> Any:
        runtime = SlowRuntime()
        async with serving(StudentModel(bundle, 0, runtime)) as address, grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            request = new_request("student-0", {"input": np.zeros((1, 1, 8, 8), np.uint8)}, {})
            answer = asyncio.ensure_future(stub.ModelInfer(request))
            await asyncio.to_thread(runtime.started.wait, TIMEOUT_S)
            live = await stub.ServerLive(pb.ServerLiveRequest(), timeout=TIMEOUT_S)
            pending = not answer.done()
            runtime.release.set()
            await answer
            return live.live, pending

    assert asyncio.run(scenario()) == (True, True)


def test_a_student_that_differs_from_the_manifest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "wide.onnx"
    file.write_bytes(linear_student(np.zeros((64, 5), np.float32)))
    with pytest.raises(BundleError, match=r"wide\.onnx: returns float32 features \[1, 5\].*\[1, 4\]"):
        OnnxRuntime(file, bundle.manifest.students[0], bundle.manifest.input)
    file.write_bytes(b"no network")
    with pytest.raises(BundleError, match=r"wide\.onnx: ONNX Runtime cannot run it"):
        OnnxRuntime(file, bundle.manifest.students[0], bundle.manifest.input)


def test_a_node_needs_only_the_manifest_and_its_own_student(bundle: Bundle, tmp_path: Path) -> None:
    student = bundle.manifest.students[STUDENT].file
    (tmp_path / "students").mkdir()
    for file in ("manifest.json", student):
        shutil.copy(bundle.path / file, tmp_path / file)
    with running_node(tmp_path, STUDENT) as (_, ready):
        assert ready["bundle"] == bundle.hash


def test_a_truncated_student_ends_the_node_with_3_and_its_name(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    student = copy / load_bundle(copy).manifest.students[STUDENT].file
    student.write_bytes(student.read_bytes()[:-10])
    ended = run("nonn_device", "serve", copy, "--student", str(STUDENT))
    assert ended.returncode == 3
    assert f"{student}: truncated or altered" in ended.stderr
    assert ended.stdout == ""


def test_a_port_in_use_ends_the_node_with_3_and_the_port(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("nonn_device", "serve", bundle.path, "--student", "0", "--port", str(port))
    assert ended.returncode == 3
    assert f"port {port} is in use" in ended.stderr


@pytest.mark.parametrize("port", [-1, 65536 + 50051])
def test_a_port_that_does_not_exist_is_refused_and_not_taken_modulo_65536(bundle: Bundle, port: Any) -> None:
    ended = run("nonn_device", "serve", bundle.path, "--student", "0", "--port", str(port))
    assert ended.returncode == 2
    assert f"--port: {port}: must be 1 to 65535" in ended.stderr


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--student", "9"], 3, "no student 9; this bundle has 0 to 3"),
        (["--student", "0", "--host", "0.0.0.0"], 2, "refusing to serve beyond loopback without TLS"),
        (["--student", "0", "--max-batch", "0"], 2, "--max-batch: 0: must be at least 1"),
        (["--student", "zero"], 2, "zero: not a whole number"),
        ([], 2, "--student"),
    ],
)
def test_options_that_cannot_be_served_end_the_node_with_their_exit_code(
    bundle: Bundle, options: Any, code: Any, text: Any
) -> None:
    ended = run("nonn_device", "serve", bundle.path, *options)
    assert ended.returncode == code
    assert text in ended.stderr


def test_insecure_is_how_an_operator_serves_beyond_loopback(bundle: Bundle) -> None:
    with running_node(bundle.path, 0, "--host", "0.0.0.0", "--insecure") as (_, ready):
        port = ready["address"].rpartition(":")[2]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert inference_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest()).live  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_node_in_order(bundle: Bundle, number: Any) -> None:
    with running_node(bundle.path, 0) as (child, _):
        child.send_signal(number)
        assert child.wait(TIMEOUT_S) == 0


def test_a_node_that_watches_its_standard_input_ends_when_it_closes(bundle: Bundle) -> None:
    with running_node(bundle.path, 0) as (child, _):
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(TIMEOUT_S) == 0


def test_a_node_that_does_not_watch_serves_with_its_standard_input_closed(bundle: Bundle) -> None:
    with process("nonn_device", "serve", bundle.path, "--student", "0") as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.stdout is not None
        assert b'"ready"' in child.stdout.readline()
        assert child.poll() is None
