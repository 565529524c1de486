"""The aggregator as a model of the Open Inference Protocol.

``input`` [B, …] → ``logits`` [B, K], ``confidence`` [B], ``answered`` [B, N] and ``expected_accuracy`` [B].
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from nonn.aggregator.service import Aggregator
from nonn.errors import BundleError
from nonn.rpc.server import Result
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.wire import check_batch, read_parameters, read_tensors

__all__ = ["MODEL", "FusedModel"]

MODEL = "nonn"


class FusedModel:
    """The model ``nonn``: all devices of a cluster as one.

    Args:
        aggregator: that asks them.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        self.name = MODEL
        self.version = aggregator.bundle.hash[:12]
        self._aggregator = aggregator

    async def __aenter__(self) -> Self:
        await self._aggregator.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._aggregator.__aexit__(kind, exc, trace)

    @property
    def ready(self) -> bool:
        """Stays true while degraded but at or above the quorum."""
        return self._aggregator.ready

    def readiness(self) -> AsyncIterator[bool]:
        """``ready`` now and again at every change."""
        return self._aggregator.readiness()

    def metadata(self) -> Any:
        """Tensors, class names, and how each node is doing."""
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
                "state": policy.state(node.id),
                "asked": policy.nodes[node.id].asked,
                "answered": policy.nodes[node.id].answered,
                "latency_s": policy.nodes[node.id].latency_s,
            }
            for node in self._aggregator.nodes
        ]
        metadata.properties["nonn_bundle"] = bundle.hash
        metadata.properties["nonn_experiment"] = bundle.manifest.experiment
        metadata.properties["nonn_classes"] = json.dumps(bundle.manifest.classes)
        metadata.properties["nonn_nodes"] = json.dumps(nodes)
        metadata.properties["nonn_quorum"] = str(policy.config.quorum)
        return metadata

    async def infer(self, request: Any, remaining_s: float | None) -> Result:
        """Fuses one batch.

        Raises:
            InputError: the batch is not what the bundle takes.
            BundleError: the caller means another bundle.
            QuorumError: fewer devices answered than the quorum.
        """
        bundle = self._aggregator.bundle
        wanted = read_parameters(request.parameters).get("nonn_bundle", bundle.hash)
        if wanted != bundle.hash:
            raise BundleError(
                f"this cluster runs bundle {bundle.hash[:12]}…, the request is for {str(wanted)[:12]}…; "
                "ask another cluster, or leave nonn_bundle out"
            )
        batch = check_batch(read_tensors(request.inputs, request.raw_input_contents), bundle.manifest.input.shape)
        answer = await self._aggregator.infer(batch, remaining_s)
        return Result(answer.outputs(), answer.parameters())
