"""An aggregator over real students in this process, fakes in the place of some, and who watches it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
from nonn_device.node import StudentModel
from nonn_device.runtime import OnnxRuntime

from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.service import Aggregator
from nonn.bundle import Bundle
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import add_tensors, write_parameters
from tests.serving import TIMEOUT_S, fake_node, serving

PATIENT = PolicyConfig(deadline_s=TIMEOUT_S)


class Watcher:
    """An observer that remembers everything."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.states: list[Any] = []
        self.late: list[Any] = []
        self.on_request, self.on_state, self.on_late = self.requests.append, self.states.append, self.late.append


def student(bundle: Bundle, device: Any, **more: Any) -> Any:
    runtime = OnnxRuntime(bundle.student_path(device), bundle.manifest.students[device], bundle.manifest.input)
    return StudentModel(bundle, device, runtime, **more)


def good_reply(bundle: Bundle, request_bytes: Any, **changes: Any) -> Any:
    """A valid reply to a request, as a fake node makes it; ``changes`` spoil it."""
    request = pb.ModelInferRequest.FromString(request_bytes)
    batch = request.inputs[0].shape[0]
    response = pb.ModelInferResponse(model_name=request.model_name, id=changes.get("id", request.id))
    outputs = {changes.get("name", "features"): changes.get("features", np.ones((batch, 4), np.float32))}
    add_tensors(response.outputs, response.raw_output_contents, outputs)
    if changes.get("of", bundle.hash):
        write_parameters(response.parameters, {"nonn_bundle": changes.get("of", bundle.hash)})
    if "raw" in changes:
        response.raw_output_contents[0] = changes["raw"]
    return response.SerializeToString()


@contextlib.asynccontextmanager
async def cluster(
    bundle: Bundle, config: Any = PATIENT, *, fakes: Any = None, replicas: Any = None, watcher: Any = None, **keys: Any
) -> AsyncIterator[Any]:
    """Real students in this process; ``fakes`` take the place of some, ``replicas`` are further fakes of a student."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for i in range(bundle.num_devices):
            replaced = i in (fakes or {})
            server = fake_node(fakes[i]) if replaced else serving(student(bundle, i))
            nodes.append(Node(id=f"node-{i}", address=await stack.enter_async_context(server), student=i))
        for i, fake in (replicas or {}).items():
            address = await stack.enter_async_context(fake_node(fake))
            nodes.append(Node(id=f"node-{i}b", address=address, student=i))
        nodes = [replace(node, **keys.get(node.id.replace("-", "_"), {})) for node in nodes]
        observers = [watcher] if watcher else []
        yield await stack.enter_async_context(Aggregator(bundle, nodes, config, observers=observers))


def slow(bundle: Bundle, gate: Any, first: int = 1) -> Any:
    """A node that answers its first requests at once and later ones when the gate opens."""
    asked = 0

    async def behaviour(raw: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked > first:
            await gate.wait()
        return good_reply(bundle, raw)

    return behaviour
