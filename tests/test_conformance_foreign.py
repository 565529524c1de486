"""A second, independent implementation of the protocol stands in for a node, lives, dies and comes back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from tests.agreement import check_against_offline_fusion
from tests.oip import foreign_server, make_stubs
from tests.serving import TIMEOUT_S, process, until

NUM_DEVICES = 3
FOREIGN = 1
MODEL, INPUT, OUTPUT = "resnet-part-1", "image", "embedding"
EVERYBODY = (1 << NUM_DEVICES) - 1


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_stubs(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(scope="module")
def network(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The student's network under somebody else's names."""
    names = {"input": INPUT, "features": OUTPUT}
    model = onnx.load(bundle.student_path(FOREIGN))
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.name = names[tensor.name]
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    onnx.save(model, path)
    return path


@contextlib.contextmanager
def served(bundle: Bundle, cluster: LocalCluster, tmp_path: Path, node: Any) -> Iterator[Any]:
    """A client of an aggregator whose second node is this one."""
    nodes = [Node(id=f"node-{s.node}", address=s.address, student=s.node) for s in cluster.states()]
    nodes[FOREIGN] = node
    inventory = tmp_path / "nodes.toml"
    write_inventory(inventory, nodes)
    with process("nonn", "serve", bundle.path, "--inventory", inventory, "--watch-stdin") as child:
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        with Client(ready["address"], TIMEOUT_S) as client:
            yield client


def stranger(address: Any) -> Any:
    return Node(id="jetson", address=address, student=FOREIGN, foreign=True, model=MODEL, input=INPUT, output=OUTPUT)


@pytest.mark.parametrize("options", [(), ("--typed",)], ids=["raw", "typed"])
def test_answers_of_a_cluster_with_a_foreign_node_are_the_offline_fusion(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, stubs: Any, network: Any, tmp_path: Path, options: Any
) -> None:
    with (
        foreign_server(stubs, network, MODEL, *options) as (_, address),
        served(bundle, cluster, tmp_path, stranger(address)) as client,
    ):
        for rows in (slice(0, 1), slice(0, 50)):
            for dtype in (np.uint8, np.float32):
                answer = client.infer(inputs[rows].astype(dtype))
                assert answer.mask == EVERYBODY, answer.failures
                check_against_offline_fusion(bundle, answer, rows)


def test_a_foreign_node_that_dies_is_left_out_and_used_again_when_it_is_back(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, stubs: Any, network: Any, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as first:
        server, address = first.enter_context(foreign_server(stubs, network, MODEL))
        with served(bundle, cluster, tmp_path, stranger(address)) as client:
            assert client.infer(inputs[:1]).mask == EVERYBODY
            server.kill()
            server.wait(TIMEOUT_S)
            for row in range(10):
                answer = client.infer(inputs[row : row + 1])
                assert answer.mask == EVERYBODY & ~(1 << FOREIGN)
                assert list(answer.failures) == ["jetson"]
                check_against_offline_fusion(bundle, answer, slice(row, row + 1))
            port = address.rpartition(":")[2]
            with foreign_server(stubs, network, MODEL, "--port", port):
                until(lambda: client.infer(inputs[:1]).mask == EVERYBODY)


def test_a_foreign_server_that_nobody_vouched_for_is_not_fused(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, stubs: Any, tmp_path: Path
) -> None:
    """It has our names, and its values are right; but nothing says which bundle they are of."""
    model = f"student-{FOREIGN}"
    with foreign_server(stubs, bundle.student_path(FOREIGN), model) as (_, address):
        vouched = Node(id="jetson", address=address, student=FOREIGN, foreign=True)
        with served(bundle, cluster, tmp_path, vouched) as client:
            assert client.infer(inputs[:1]).mask == EVERYBODY
        unknown = Node(id="jetson", address=address, student=FOREIGN)
        with served(bundle, cluster, tmp_path, unknown) as client:
            answer = client.infer(inputs[:1].astype(np.float32))
            assert answer.mask == EVERYBODY & ~(1 << FOREIGN)
            assert "jetson" in answer.failures


def test_a_foreign_server_with_another_model_or_output_is_named_with_what_it_says(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, stubs: Any, network: Any, tmp_path: Path
) -> None:
    with foreign_server(stubs, network, MODEL) as (_, address):
        wrong = Node(id="jetson", address=address, student=FOREIGN, foreign=True, model="resnet", input=INPUT)
        with served(bundle, cluster, tmp_path, wrong) as client:
            answer = client.infer(inputs[:1])
    assert answer.mask == EVERYBODY & ~(1 << FOREIGN)
    assert "unknown model 'resnet'" in answer.failures["jetson"]
