"""A small client of the aggregator.

::

    with Client("127.0.0.1:50051") as client:
        answer = client.infer(images)                      # one batch
        answers = client.infer_many(batches, concurrency=8)   # many requests at once, answers in order

Any client of the Open Inference Protocol works; this one also maps gRPC status back to nonn's errors.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from nonn.answer import MODEL, Answer
from nonn.bundle.preprocess import Preprocess, recorded
from nonn.errors import (
    ConfigError,
    CredentialsError,
    DataLossError,
    InputError,
    NonnError,
    UnreachableError,
)
from nonn.rpc.address import split_address
from nonn.rpc.checksum import check_sealed, model_name
from nonn.rpc.codec import write_request
from nonn.rpc.guard import Tokens
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import CHANNEL_OPTIONS, CLIENT_STREAMS, INFER_METHOD, MAX_SAMPLES, Array, from_status
from nonn.security.handshake import explain
from nonn.security.tls import AGGREGATOR_NAME, load_tls

__all__ = ["Client", "Metadata"]


@dataclass(frozen=True)
class Metadata:
    """Metadata of an aggregator's model.

    Attributes:
        shape: of one sample, for example [C, H, W].
        dtype: of raw inputs, ``uint8`` or ``float32``; both are accepted.
        classes: class names [K].
        bundle: hash of the bundle.
        num_devices: N.
        quorum: a request with fewer answers than this fails.
        nodes: of each node ``id``, ``address``, ``student``, ``state``, ``asked``, ``answered`` and ``latency_s``.
        state: what ``nonn top`` shows, see ``nonn.aggregator.monitoring.state``; empty without a monitor.
        preprocess: how files become inputs; as in the bundle.
        max_samples: most samples of one request.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: tuple[str, ...]
    bundle: str
    num_devices: int
    quorum: int
    nodes: tuple[Mapping[str, Any], ...]
    state: Mapping[str, Any]
    preprocess: Preprocess = Preprocess()  # noqa: RUF009  (frozen)
    max_samples: int = MAX_SAMPLES


class Client:
    """A connection to an aggregator; thread-safe.

    Args:
        address: ``host:port``.
        timeout_s: of each call; also bounds the deadline of the devices.
        tls: the client's TLS folder, made by ``nonn certs``; None for plain text.
        token_file: file with the bearer token; None sends none.
        insecure: send the token beyond loopback in plain text.

    Raises:
        ConfigError: the address is not ``host:port``, or the timeout is not a positive number.
        CredentialsError: the folder or file cannot be used, or the token would be sent beyond loopback in plain text.
    """

    def __init__(
        self,
        address: str,
        timeout_s: float = 10.0,
        *,
        tls: Path | None = None,
        token_file: Path | None = None,
        insecure: bool = False,
    ) -> None:
        if not 0 < timeout_s < math.inf:
            raise ConfigError(f"timeout {timeout_s}: must be a positive number of seconds")
        split_address(address)
        self.address, self.timeout_s = address, timeout_s
        self._free = threading.BoundedSemaphore(CLIENT_STREAMS)
        self._tls, self._looked = load_tls(tls, "client", "aggregator"), False
        self._tokens = Tokens(token_file) if token_file else None
        if self._tokens is not None:
            self._tokens.check_link(address, self._tls, insecure=insecure)
        if self._tls is None:
            self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            credentials, options = self._tls.channel_options(AGGREGATOR_NAME)
            self._channel = grpc.secure_channel(address, credentials, options=(*CHANNEL_OPTIONS, *options))
        self._stub = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._infer = self._channel.unary_unary(INFER_METHOD)  # bytes, because of their checksum

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def infer(self, inputs: Array | str | Path | Sequence[str | Path]) -> Answer:
        """Sends one batch and returns its answer.

        Args:
            inputs: raw values [B, …], uint8 or float32; or files, which are prepared as those of the training were.

        Raises:
            InputError: the cluster does not accept the batch.
            DataError: a file cannot be read.
            UnreachableError: no answer at the address, or not in time.
            QuorumError: too few devices answered.
            DataLossError: request or answer were altered on the way.
        """
        batch = inputs if isinstance(inputs, np.ndarray) else self.read(inputs)
        start = time.perf_counter()
        raw = self._call(self._infer, model_name(MODEL) + write_request("", {"input": batch}, {}))
        latency_s = time.perf_counter() - start
        try:
            check_sealed(raw)
            response = pb.ModelInferResponse.FromString(raw)
        except DataLossError as exc:
            raise DataLossError(f"{self.address}: {exc}") from None
        except DecodeError as exc:
            raise InputError(f"{self.address}: {len(raw)} bytes that are not a ModelInferResponse") from exc
        return Answer.from_response(response, latency_s)

    def read(self, files: str | Path | Sequence[str | Path]) -> Array:
        """Images and arrays as one batch [B, …], prepared as the files of the training were.

        Args:
            files: a file, a folder, a pattern, or several of them.

        Raises:
            DataError: a file cannot be read.
            InputError: there is no such file, or it does not fit the bundle.
        """
        from nonn.inputs import InputReader, expand  # Pillow is not part of every client

        metadata = self.metadata()
        reader = InputReader(metadata.shape, metadata.dtype, metadata.preprocess)
        names = expand([files] if isinstance(files, str | Path) else files)
        return np.concatenate([batch for name in names for batch in reader.read(name)])

    def infer_many(self, batches: Iterable[Array], concurrency: int = 8) -> list[Answer]:
        """Sends many batches, several at a time.

        Args:
            batches: raw values [B, …] each.
            concurrency: requests in flight at once.

        Returns:
            Answers in the order of the batches.

        Raises:
            NonnError: the first request that failed; requests not yet sent are dropped.
        """
        with ThreadPoolExecutor(concurrency, thread_name_prefix="client") as executor:
            try:
                return list(executor.map(self.infer, batches))
            except NonnError:
                executor.shutdown(cancel_futures=True)
                raise

    def ready(self) -> bool:
        """Whether the server is ready; false also if it cannot be reached."""
        try:
            return bool(self._call(self._stub.ServerReady, pb.ServerReadyRequest()).ready)
        except NonnError:
            return False

    def metadata(self) -> Metadata:
        """The model's inputs and outputs, and the state of the cluster.

        Raises:
            UnreachableError: no answer at the address.
            ConfigError: the server is not an aggregator.
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
            state=json.loads(properties["nonn_state"] or "{}"),
            preprocess=recorded(json.loads(properties["nonn_preprocess"] or "{}"), None),
            max_samples=int(json.loads(properties["nonn_batching"] or "{}").get("max_samples", MAX_SAMPLES)),
        )

    def _call(self, method: Any, request: Any) -> Any:
        """Makes one call and maps its failure."""
        if self._tls is not None and not self._looked:
            # gRPC does not check revocation: the standard library checks the aggregator's certificate first.
            self._look()
            self._looked = True
        metadata = (("authorization", f"Bearer {self._tokens.first}"),) if self._tokens else ()
        start = time.monotonic()
        if not self._free.acquire(timeout=self.timeout_s):
            raise UnreachableError(f"{self.address}: {CLIENT_STREAMS} calls before this one took {self.timeout_s} s")
        try:
            left = max(0.001, self.timeout_s - (time.monotonic() - start))
            return method(request, timeout=left, metadata=metadata)
        except grpc.RpcError as exc:
            error = from_status(exc, self.address)
            if isinstance(error, UnreachableError):
                self._look()  # gRPC does not report why a certificate was refused
            raise error from exc
        finally:
            self._free.release()

    def _look(self) -> None:
        """Checks the aggregator's certificate, and whether it uses TLS at all.

        Raises:
            CredentialsError: the check failed; the message names the reason.
        """
        text = explain(self.address, AGGREGATOR_NAME if self._tls else None, self._tls)
        if text:
            raise CredentialsError(f"{self.address}: {text}")
