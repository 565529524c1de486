"""The aggregator as a model of the Open Inference Protocol.

``input`` [B, …] → ``logits`` [B, K], ``confidence`` [B], ``answered`` [B, N] and ``expected_accuracy`` [B].
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

from nonn.aggregator.batching import BatchConfig, Batcher
from nonn.aggregator.events import Outcome, RequestEvent
from nonn.aggregator.inventory import Node
from nonn.aggregator.monitoring.state import ClusterState
from nonn.aggregator.service import Aggregator
from nonn.answer import MODEL, Answer
from nonn.documents import to_json
from nonn.errors import BundleError, InputError, OverloadError
from nonn.rpc.codec import Request
from nonn.rpc.endpoint import InferenceResult
from nonn.rpc.outline import MAX_PARSED_BYTES
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import request_limit

__all__ = ["FusedModel"]

# Metadata costs as much as several requests, and no share of a caller limits these calls: so many in this time.
METADATA_S, METADATA_MADE = 0.25, 4


class FusedModel:
    """The model ``nonn``: all devices of a cluster as one.

    Args:
        aggregator: the aggregator of the cluster.
        state: the state that ``nonn top`` shows, for the metadata; see ``nonn.aggregator.monitoring.state``.
        batching: limits of dynamic batching and of the queue.
        answered: called with every answer; its latency includes the wait in the queue.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        state: Callable[[], ClusterState] | None = None,
        batching: BatchConfig | None = None,
        answered: Callable[[Answer], None] | None = None,
    ) -> None:
        self.name = MODEL
        self.version = aggregator.bundle.hash[:12]
        batching = batching or BatchConfig()
        shape = aggregator.bundle.manifest.input.shape
        self.max_request_bytes = request_limit(shape, batching.max_samples, batching.max_request_bytes)
        self._shape, self._max_samples = shape, batching.max_samples
        self._batcher = Batcher(
            aggregator.infer_checked,
            batching,
            aggregator.policy.config,
            join=aggregator.join,
            sample_s=aggregator.policy.sample_s,
            accepted=aggregator.policy.max_batch,
            refused=aggregator.on_refusal,
            cheap=aggregator.cheap,
        )
        self._aggregator, self._state, self._answered = aggregator, state, answered
        self._metadata, self._metadata_of = None, list[tuple[Node, str]]()  # the last reply, and the states that it has
        self._metadata_since, self._metadata_made = -math.inf, 0

    async def __aenter__(self) -> Self:
        await self._aggregator.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._batcher.close()
        await self._aggregator.__aexit__(kind, exc, trace)

    @property
    def ready(self) -> bool:
        """Stays true while degraded but at or above the quorum."""
        return self._aggregator.ready

    def readiness(self) -> AsyncIterator[bool]:
        """``ready`` now and again at every change."""
        return self._aggregator.readiness()

    def metadata(self) -> Any:
        """Tensors, class names, and the state of each node.

        A caller that asks again and again gets the last message, whose states are those of now, but whose counts and
        latencies are up to ``METADATA_S`` old.
        """
        now, policy = self._aggregator.clock(), self._aggregator.policy
        if now - self._metadata_since >= METADATA_S:
            self._metadata_since, self._metadata_made = now, 0
        states = [(node, policy.state(node.id)) for node in self._aggregator.nodes]
        if self._metadata_made < METADATA_MADE or states != self._metadata_of:
            self._metadata, self._metadata_of = self._new_metadata(states), states
            self._metadata_made += 1
        return self._metadata

    def _new_metadata(self, states: list[tuple[Node, str]]) -> Any:
        bundle, policy = self._aggregator.bundle, self._aggregator.policy
        spec, num_classes = bundle.manifest.input, len(bundle.manifest.classes)
        metadata = pb.ModelMetadataResponse(name=self.name, versions=[self.version], platform="nonn")
        datatype = "UINT8" if spec.dtype == "uint8" else "FP32"
        metadata.inputs.add(name="input", datatype=datatype, shape=[-1, *spec.shape])
        for name, datatype, shape in (
            ("logits", "FP32", [-1, num_classes]),
            ("confidence", "FP32", [-1]),
            ("answered", "BOOL", [-1, bundle.num_devices]),
            ("expected_accuracy", "FP32", [-1]),
        ):
            metadata.outputs.add(name=name, datatype=datatype, shape=shape)
        nodes = [
            {
                "id": node.id,
                "address": node.address,
                "student": node.student,
                "state": state,
                "asked": policy.nodes[node.id].asked,
                "answered": policy.nodes[node.id].answered,
                "latency_s": policy.nodes[node.id].latency_s,
                "latency_p95_s": policy.nodes[node.id].latencies.quantile(0.95),
            }
            for node, state in states
        ]
        metadata.properties["nonn_bundle"] = bundle.hash
        metadata.properties["nonn_experiment"] = bundle.manifest.experiment
        metadata.properties["nonn_classes"] = json.dumps(bundle.manifest.classes)
        metadata.properties["nonn_preprocess"] = json.dumps(dataclasses.asdict(spec.preprocess))
        metadata.properties["nonn_nodes"] = json.dumps(nodes)
        batching = dataclasses.asdict(self._batcher.config)
        # Clients make their requests as large as this says: in float32, which is the largest.
        fitting = (self.max_request_bytes - MAX_PARSED_BYTES) // (4 * math.prod(spec.shape))
        batching["max_samples"] = max(1, min(self._max_samples, fitting))
        batching["company_s"] = batching["regroup_s"]  # its old name, for programs that read it
        metadata.properties["nonn_batching"] = json.dumps(batching)
        metadata.properties["nonn_quorum"] = str(policy.config.quorum)
        metadata.properties["nonn_policy"] = json.dumps(dataclasses.asdict(policy.config))
        if self._state:
            metadata.properties["nonn_state"] = json.dumps(to_json(self._state()))
        return metadata

    async def infer(self, request: Request, remaining_s: float | None) -> InferenceResult:
        """Fuses one batch.

        Raises:
            InputError: the bundle does not accept the batch.
            BundleError: the request names another bundle.
            OverloadError: the queue is full.
            QuorumError: fewer devices answered than the quorum.
        """
        bundle = self._aggregator.bundle
        if not request.is_for(bundle.hash):
            raise BundleError(
                f"this cluster runs bundle {bundle.hash[:12]}…, the request is for {str(request.bundle)[:12]}…; "
                "ask another cluster, or leave nonn_bundle out"
            )
        try:
            batch = request.batch(self._shape, self._max_samples)
        except InputError:
            self._tell_refused("invalid", 0)
            raise
        try:
            answer = await self._batcher.infer(batch, remaining_s, request.caller, request.connection)
        except OverloadError:
            self._tell_refused("exhausted", len(batch))
            raise
        if self._answered:
            self._answered(answer)
        return InferenceResult(answer.outputs(), answer.parameters())

    def _tell_refused(self, outcome: Outcome, num_samples: int) -> None:
        """Reports a request that was sent to no node to the observers."""
        self._aggregator.observers.on_request(RequestEvent(time.monotonic(), num_samples, outcome))
