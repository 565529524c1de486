"""A small client of the aggregator.

::

    with Client("127.0.0.1:50051") as client:
        answer = client.infer(images)                      # one batch
        answers = client.infer_many(batches, concurrency=8)   # many requests at once, answers in order

Any client of the Open Inference Protocol does too; this one maps gRPC status back to nonn's errors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from nonn.answer import Answer
from nonn.errors import NonnError
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.wire import CHANNEL_OPTIONS, Array, from_status, new_request

__all__ = ["Client", "Metadata"]

MODEL = "nonn"


@dataclass(frozen=True)
class Metadata:
    """What an aggregator says about itself.

    Attributes:
        shape: of one sample, for example [C, H, W].
        dtype: of raw inputs, ``uint8`` or ``float32``; both are accepted.
        classes: class names [K].
        bundle: hash of the bundle.
        num_devices: N.
        quorum: fewer answers than this are no answer.
        nodes: of each node ``id``, ``address``, ``student``, ``state``, ``asked``, ``answered`` and ``latency_s``.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: tuple[str, ...]
    bundle: str
    num_devices: int
    quorum: int
    nodes: tuple[Mapping[str, Any], ...]


class Client:
    """A connection to an aggregator; may be used by several threads at once.

    Args:
        address: ``host:port``.
        timeout_s: of each call; also the deadline that devices are held to.
    """

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def infer(self, inputs: Array) -> Answer:
        """Asks for one batch.

        Args:
            inputs: raw values [B, …], uint8 or float32.

        Raises:
            InputError: the batch is not what the cluster takes.
            UnreachableError: nobody answers at the address, or not in time.
            QuorumError: too few devices answered.
        """
        start = time.perf_counter()
        response = self._call(self._stub.ModelInfer, new_request(MODEL, {"input": inputs}, {}))
        return Answer.from_response(response, time.perf_counter() - start)

    def infer_many(self, batches: Iterable[Array], concurrency: int = 8) -> list[Answer]:
        """Asks for many batches, several at a time.

        Args:
            batches: raw values [B, …] each.
            concurrency: requests under way at once.

        Returns:
            Answers in the order of the batches.

        Raises:
            NonnError: the first request that failed; those not yet sent are dropped.
        """
        with ThreadPoolExecutor(concurrency, thread_name_prefix="client") as executor:
            try:
                return list(executor.map(self.infer, batches))
            except NonnError:
                executor.shutdown(cancel_futures=True)
                raise

    def ready(self) -> bool:
        """Whether a request would be answered now; false also when nobody is there."""
        try:
            return bool(self._call(self._stub.ServerReady, pb.ServerReadyRequest()).ready)
        except NonnError:
            return False

    def metadata(self) -> Metadata:
        """What the cluster takes, gives and consists of.

        Raises:
            UnreachableError: nobody answers at the address.
            ConfigError: it is not an aggregator.
        """
        response = self._call(self._stub.ModelMetadata, pb.ModelMetadataRequest(name=MODEL))
        outputs = {output.name: output for output in response.outputs}
        properties = response.properties
        return Metadata(
            shape=tuple(response.inputs[0].shape[1:]),
            dtype="uint8" if response.inputs[0].datatype == "UINT8" else "float32",
            classes=tuple(json.loads(properties["nonn_classes"])),
            bundle=properties["nonn_bundle"],
            num_devices=outputs["answered"].shape[1],
            quorum=int(properties["nonn_quorum"]),
            nodes=tuple(json.loads(properties["nonn_nodes"])),
        )

    def _call(self, method: Any, request: Any) -> Any:
        """Makes one call and maps its failure."""
        try:
            return method(request, timeout=self.timeout_s)
        except grpc.RpcError as exc:
            raise from_status(exc, self.address) from exc
