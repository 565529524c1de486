"""One request to many nodes; every reply is checked before it may be fused.

The part of the request that all nodes share is serialised once. A node's own part is its model name, and a protobuf
message may be concatenated from pieces (protobuf.dev, encoding, "Last One Wins"), so a request is two byte strings
joined. Replies come back as bytes too: one that cannot be parsed is that node's failure, not the request's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from grpc import aio
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node
from nonn.bundle import Bundle
from nonn.errors import InputError
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.wire import CHANNEL_OPTIONS, Array, new_request, read_parameters, read_tensors

__all__ = ["Fanout", "Reply"]

Float32 = NDArray[np.float32]

METHOD = "/inference.GRPCInferenceService/ModelInfer"
_OPTIONS = (
    *CHANNEL_OPTIONS,
    # A node that was restarted should be found within half a second, not after gRPC's back-off of up to two minutes.
    # The minimum is also how long one attempt to connect may take; a stopped process accepts and then says nothing.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    # For idle links that die silently; a request's own deadline is what detects failures.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True)
class Reply:
    """What came of asking one node.

    Attributes:
        node: that was asked.
        features: [B, d_i]; None if it failed.
        error: why it failed; empty if it did not.
        latency_s: from asking to the reply or the failure.
        timed_out: it failed by silence.
    """

    node: Node
    features: Float32 | None
    error: str
    latency_s: float
    timed_out: bool = False


class Fanout:
    """Channels to all nodes of an inventory.

    Args:
        nodes: the inventory.
        bundle: that every reply must be of.
        clock: seconds that never go back, for latencies.
    """

    def __init__(self, nodes: Sequence[Node], bundle: Bundle, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._nodes = {node.id: node for node in nodes}
        self._bundle = bundle
        self._widths = [student.width for student in bundle.manifest.students]
        self._prefix = {
            node.id: pb.ModelInferRequest(model_name=f"student-{node.student}").SerializeToString() for node in nodes
        }
        self._ids = count(1)
        self._channels: dict[str, Any] = {}
        self._calls: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        for node in self._nodes.values():
            channel = aio.insecure_channel(node.address, options=_OPTIONS)
            self._channels[node.id] = channel
            # No serialisers: bytes go out and come in.
            self._calls[node.id] = channel.unary_unary(METHOD)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def ask(
        self, node_ids: Iterable[str], batch: Array, deadline_s: float, *, wait_for_ready: bool = False
    ) -> list[Reply]:
        """Sends one batch to several nodes and waits until each has answered, failed or run out of time.

        Args:
            node_ids: whom to ask.
            batch: checked inputs [B, …], sent in the dtype they have.
            deadline_s: what has not come by then is dropped and the call cancelled.
            wait_for_ready: keep trying to connect until the deadline, instead of failing when the node refuses.

        Returns:
            A reply for each node, in order.
        """
        request_id = str(next(self._ids))
        body = new_request("", {"input": batch}, {"nonn_bundle": self._bundle.hash}, request_id).SerializeToString()
        calls = (self._ask(n, body, request_id, len(batch), deadline_s, wait_for_ready) for n in node_ids)
        return await asyncio.gather(*calls)

    async def _ask(
        self, node_id: str, body: bytes, request_id: str, num_samples: int, deadline_s: float, wait_for_ready: bool
    ) -> Reply:
        """Asks one node; whatever goes wrong there becomes the reply."""
        node, start = self._nodes[node_id], self._clock()
        try:
            raw = await self._calls[node_id](
                self._prefix[node_id] + body, timeout=deadline_s, wait_for_ready=wait_for_ready
            )
            features = self._read(raw, node, request_id, num_samples)
        except aio.AioRpcError as exc:
            waited_s = self._clock() - start
            timed_out = exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return Reply(node, None, _reason(exc, waited_s), waited_s, timed_out)
        except InputError as exc:
            return Reply(node, None, f"bad reply: {exc}", self._clock() - start)
        return Reply(node, features, "", self._clock() - start)

    def _read(self, raw: bytes, node: Node, request_id: str, num_samples: int) -> Float32:
        """Features of a reply.

        Raises:
            InputError: it is not a reply, not to this request, of another bundle, or not finite float32 [B, d_i].
        """
        try:
            response = pb.ModelInferResponse.FromString(raw)
        except DecodeError as exc:
            raise InputError(f"{len(raw)} bytes that are no ModelInferResponse") from exc
        bundle = read_parameters(response.parameters).get("nonn_bundle")
        if bundle != self._bundle.hash:
            raise InputError(f"of bundle {str(bundle)[:12]}…, not {self._bundle.hash[:12]}…")
        if response.id != request_id:
            raise InputError(f"to request '{response.id}', not '{request_id}'")
        tensors = read_tensors(response.outputs, response.raw_output_contents)
        if "features" not in tensors:
            raise InputError(f"no 'features' among its outputs ({', '.join(tensors) or 'none'})")
        features, shape = tensors["features"], (num_samples, self._widths[node.student])
        if features.dtype != np.float32 or features.shape != shape:
            raise InputError(f"{features.dtype} features {list(features.shape)}, expected float32 {list(shape)}")
        if not np.isfinite(features).all():
            raise InputError("features hold NaN or infinity")
        return features


def _reason(exc: aio.AioRpcError, waited_s: float) -> str:
    """A failed call in a few words; gRPC nests the cause of a lost connection three colons deep."""
    code, details = exc.code(), exc.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"silent for {waited_s:.2f} s"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"unreachable: {details.rsplit(': ', 1)[-1]}"
    return f"{code.name}: {details}"
