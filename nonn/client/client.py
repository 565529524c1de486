"""A small client of a cluster.

::

    with Client("127.0.0.1:50051") as client:
        answer = client.infer(images)                      # one batch
        answers = client.infer_many(batches, concurrency=8)   # many requests at once, answers in order

    Client("10.0.0.1:50051,10.0.0.2:50051")                # two aggregators of the same nodes

With several aggregators no request fails because one of them is killed, stopped or cut off (``nonn.client.failover``).

Any client of the Open Inference Protocol works; this one also maps gRPC status back to nonn's errors.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from nonn.answer import MODEL, Answer
from nonn.bundle.preprocess import Preprocess, recorded
from nonn.client.failover import Failover
from nonn.client.link import Link
from nonn.errors import ConfigError, DataLossError, InputError, NonnError, QuorumError, UnreachableError
from nonn.rpc.address import split_addresses
from nonn.rpc.checksum import check_sealed, model_name
from nonn.rpc.codec import write_request
from nonn.rpc.guard import Tokens
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import MAX_SAMPLES, Array
from nonn.security.tls import load_tls
from nonn.streams import WindowAnswer
from nonn.telemetry.printable import printable_tree

__all__ = ["Client", "Metadata"]

T = TypeVar("T")


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
    """A client of one or several aggregators; thread-safe.

    Args:
        address: ``host:port`` of an aggregator, or of several with commas between them.
        timeout_s: of each call; also bounds the deadline of the devices.
        tls: the client's TLS folder, made by ``nonn certs``; None for plain text.
        token_file: file with the bearer token; None sends none.
        insecure: send the token beyond loopback in plain text.

    Attributes:
        address: as given.
        timeout_s: of each call.

    Raises:
        ConfigError: an address is not ``host:port``, or the timeout is not a positive number.
        CredentialsError: the folder or file cannot be used.
        PlainTextError: the token would be sent beyond loopback in plain text.
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
        addresses = split_addresses(address)
        self.address, self.timeout_s = address, timeout_s
        folder, tokens = load_tls(tls, "client", "aggregator"), Tokens(token_file) if token_file else None
        if tokens is not None:
            for each in addresses:
                tokens.check_link(each, folder, insecure=insecure)
        self._links = [Link(each, folder, tokens) for each in addresses]
        self._failover = Failover(self._links)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        for link in self._links:
            link.close()

    @property
    def aggregator(self) -> str:
        """Address of the aggregator that is asked first: the one that answered last."""
        return self._failover.first.address

    def infer(self, inputs: Array | str | Path | Sequence[str | Path]) -> Answer:
        """Sends one batch and returns its answer.

        Args:
            inputs: raw values [B, …], uint8 or float32; or files, which are prepared as those of the training were.

        Raises:
            InputError: the cluster does not accept the batch.
            DataError: a file cannot be read.
            UnreachableError: no aggregator answers, or not in time.
            QuorumError: too few devices answered.
            DataLossError: request or answer were altered on the way.
        """
        batch = inputs if isinstance(inputs, np.ndarray) else self.read(inputs)
        start = time.perf_counter()
        request = model_name(MODEL) + write_request("", {"input": batch}, {})
        response = self._call("ModelInfer", request, _read_sealed)
        return Answer.from_response(response, time.perf_counter() - start)

    def read(self, files: str | Path | Sequence[str | Path]) -> Array:
        """Images and arrays as one batch [B, …], prepared as the files of the training were.

        Args:
            files: a file, a folder, a pattern, or several of them.

        Raises:
            DataError: a file cannot be read.
            InputError: there is no such file, or it does not fit the bundle.
        """
        from nonn.bundle.inputs import InputReader, expand  # Pillow is not part of every client

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

    def watch(self) -> Iterator[WindowAnswer]:
        """Answers of nodes that sense, from now on, one for each window; closing the iterator ends the stream.

        With several aggregators, those of the one that is asked first.

        Raises:
            ConfigError: the aggregator streams no answers.
            UnreachableError: the aggregator does not answer, or has ended.
        """
        link = self._failover.first
        try:
            for message in link.watch():
                yield WindowAnswer.from_message(message)
        except UnreachableError:
            link.look()  # gRPC does not report why a certificate was refused
            raise
        raise UnreachableError(f"{link.address}: the aggregator has ended the stream of answers")

    def ready(self) -> bool:
        """Whether an aggregator is ready; false also if none can be reached."""
        try:
            return self._call("ServerReady", pb.ServerReadyRequest(), _read_ready)
        except NonnError:
            return False

    def metadata(self) -> Metadata:
        """The model's inputs and outputs, and the state of the cluster.

        Raises:
            UnreachableError: no aggregator answers.
            ConfigError: the server is not an aggregator.
        """
        response = self._call("ModelMetadata", pb.ModelMetadataRequest(name=MODEL), lambda reply, address: reply)
        outputs = {output.name: output for output in response.outputs}
        properties = response.properties
        return Metadata(
            shape=tuple(response.inputs[0].shape[1:]),
            dtype="uint8" if response.inputs[0].datatype == "UINT8" else "float32",
            classes=tuple(_read_json(properties["nonn_classes"])),
            bundle=properties["nonn_bundle"],
            num_devices=outputs["answered"].shape[1],
            quorum=int(properties["nonn_quorum"]),
            nodes=tuple(_read_json(properties["nonn_nodes"])),
            state=_read_json(properties["nonn_state"] or "{}"),
            preprocess=recorded(json.loads(properties["nonn_preprocess"] or "{}"), None),
            max_samples=int(json.loads(properties["nonn_batching"] or "{}").get("max_samples", MAX_SAMPLES)),
        )

    def _call(self, method: str, request: Any, read: Callable[[Any, str], T]) -> T:
        """Makes one call, at the next aggregator if one fails; the arguments are those of ``Failover.call``."""
        if len(self._links) > 1:
            return self._failover.call(method, request, self.timeout_s, read)
        (link,) = self._links
        try:
            return read(link.call(method, request, self.timeout_s), link.address)
        except UnreachableError:
            link.look()  # gRPC does not report why a certificate was refused
            raise


def _read_sealed(raw: bytes, address: str) -> Any:
    """The ModelInferResponse in a reply with a checksum."""
    try:
        check_sealed(raw)
        return pb.ModelInferResponse.FromString(raw)
    except DataLossError as exc:
        raise DataLossError(f"{address}: {exc}") from None
    except DecodeError as exc:
        raise InputError(f"{address}: {len(raw)} bytes that are not a ModelInferResponse") from exc


def _read_json(text: str) -> Any:
    """JSON in an aggregator's metadata; its texts reach terminals."""
    return printable_tree(json.loads(text))


def _read_ready(reply: Any, address: str) -> bool:
    """True; an aggregator that is not ready has failed, so that the next one is asked."""
    if not reply.ready:
        raise QuorumError(f"{address}: not ready")
    return True
