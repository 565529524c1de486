"""Traces across real processes: one aggregator, two nodes, and a client with a trace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider

from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request
from nonn.telemetry.tracing import Tracing, span
from tests.serving import TIMEOUT_S, process, running_node, until_async
from tests.toys import toy_bundle

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLE = np.zeros((1, 1, 8, 8), np.uint8)
NUM = 12  # their spans fit into the pipe that holds a log until its process has ended


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("tracing") / "bundle", num_devices=2)


@contextlib.contextmanager
def traced_cluster(bundle: Bundle, folder: Any, *options: Any) -> Iterator[Any]:
    """Two nodes and an aggregator; yields its address and a function that ends all and gives back their spans."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(running_node(bundle.path, i, *options)) for i in range(2)]
        write_inventory(
            folder / "nodes.toml",
            [Node(id=f"node-{i}", address=ready["address"], student=i) for i, (_, ready) in enumerate(nodes)],
        )
        arguments = ["serve", bundle.path, "--inventory", folder / "nodes.toml", "--watch-stdin", *options]
        aggregator = stack.enter_context(process("nonn", *arguments))
        assert aggregator.stdout is not None
        address = json.loads(aggregator.stdout.readline())["address"]

        def spans() -> Any:
            found = []
            for child in (aggregator, *(child for child, _ in nodes)):
                child.send_signal(signal.SIGTERM)
                log = child.communicate(timeout=TIMEOUT_S)[1].decode()
                assert child.returncode == 0
                found += [json.loads(line) for line in log.splitlines() if line.startswith("{")]
            return found

        yield address, spans


def infer(address: Any, metadata: Any = ()) -> Any:
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        return stub.ModelInfer(new_request("nonn", {"input": SAMPLE}, {}), timeout=TIMEOUT_S, metadata=metadata)


def test_a_request_is_one_trace_from_the_client_to_every_node(bundle: Bundle, tmp_path: Path) -> None:
    with traced_cluster(bundle, tmp_path, "--trace", "console") as (address, end):
        infer(address, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
        spans = end()
    assert {one["context"]["trace_id"] for one in spans} == {f"0x{TRACE}"}  # probes leave none
    named = {name: [one for one in spans if one["name"] == name] for name in {one["name"] for one in spans}}
    assert {name: len(found) for name, found in named.items()} == {
        "nonn.request": 1,
        "nonn.ask": 2,
        "nonn.infer": 2,
        "nonn.fuse": 1,
    }
    request, fuse = named["nonn.request"][0], named["nonn.fuse"][0]
    assert request["parent_id"] == f"0x{PARENT}"
    assert fuse["parent_id"] == request["context"]["span_id"]
    assert {ask["parent_id"] for ask in named["nonn.ask"]} == {request["context"]["span_id"]}
    assert {ask["attributes"]["nonn.node"] for ask in named["nonn.ask"]} == {"node-0", "node-1"}
    assert {ask["attributes"]["rpc.grpc.status_code"] for ask in named["nonn.ask"]} == {0}
    asks = {ask["context"]["span_id"] for ask in named["nonn.ask"]}
    assert {one["parent_id"] for one in named["nonn.infer"]} == asks
    assert {one["resource"]["attributes"]["service.name"] for one in spans} == {"nonn-aggregator", "nonn-device"}
    assert {request["kind"], *(one["kind"] for one in named["nonn.infer"])} == {"SpanKind.SERVER"}
    for ask in named["nonn.ask"]:
        assert request["start_time"] <= ask["start_time"] <= ask["end_time"] <= fuse["end_time"] <= request["end_time"]


def test_requests_that_travel_together_are_below_one_that_is_under_way(bundle: Bundle, tmp_path: Path) -> None:
    with traced_cluster(bundle, tmp_path, "--trace", "console") as (address, end):
        with Client(address, TIMEOUT_S) as client:
            client.infer_many([SAMPLE] * NUM, concurrency=NUM)
        spans = {one["context"]["span_id"]: one for one in end()}
    requests = [one for one in spans.values() if one["name"] == "nonn.request"]
    steps = [one for one in spans.values() if one["name"] in ("nonn.ask", "nonn.fuse")]
    assert len(requests) == NUM
    assert 3 <= len(steps) <= 3 * NUM  # two nodes and fusion, for all that travelled together
    for step in steps:
        parent = spans[step["parent_id"]]
        assert parent["name"] == "nonn.request"
        assert parent["start_time"] <= step["start_time"] <= parent["end_time"]


def test_nothing_is_traced_unless_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    with traced_cluster(bundle, tmp_path) as (address, end):
        infer(address, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
        assert end() == []


def test_a_refused_request_is_a_trace_of_its_own_with_the_reason(bundle: Bundle, tmp_path: Path) -> None:
    with traced_cluster(bundle, tmp_path, "--trace", "console") as (address, end):
        request = new_request("nonn", {"input": np.zeros((1, 3, 3), np.uint8)}, {})
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError, match="expected"):
            inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=TIMEOUT_S)  # type: ignore[no-untyped-call]
        spans = end()
    assert [one["name"] for one in spans] == ["nonn.request"]
    assert spans[0]["status"]["status_code"] == "ERROR"
    assert "expected [B, 1, 8, 8]" in spans[0]["status"]["description"]


def test_a_span_that_cannot_be_ended_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Call:
        async def code(self) -> grpc.StatusCode:
            raise ValueError("no status")

    async def scenario() -> None:
        tracing = Tracing(TracerProvider(), "nonn.request", begins=True)
        tracing.end(tracing.tracer.start_span("nonn.ask"), Call())
        await until_async(lambda: "the end of a span failed: no status" in caplog.text)

    asyncio.run(scenario())


def test_without_a_trace_a_step_does_nothing_and_loads_nothing() -> None:
    program = (
        "import sys; import nonn.telemetry.tracing; "
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout == "False\n"
    with span("nonn.fuse", nodes=1):
        pass


@pytest.mark.parametrize("command", [("nonn_device", "serve", "--student", "0"), ("nonn", "serve", "--inventory")])
def test_without_the_extra_the_message_has_the_install_command(bundle: Bundle, tmp_path: Path, command: Any) -> None:
    write_inventory(tmp_path / "nodes.toml", [Node(id="a", address="127.0.0.1:9", student=0)])
    module, *arguments = command
    arguments += [str(tmp_path / "nodes.toml")] if module == "nonn" else []
    program = f"import sys; sys.modules['opentelemetry'] = None; from {module}.cli import main; sys.exit(main())"
    refused = subprocess.run(
        [sys.executable, "-c", program, *arguments, str(bundle.path), "--trace", "otlp"], capture_output=True, text=True
    )
    assert refused.returncode == 6, refused.stderr
    assert "pip install 'nonn[otel]'" in refused.stderr
