"""The outcome of asking one node, checked before it may be fused.

A reply is valid only if it answers this request, names this bundle, has exactly the expected name, dtype and shape, is
not larger than these need, and is finite. Anything else is a failure of the node, never of the request.

A foreign node, an ordinary server of the Open Inference Protocol, cannot report the bundle of its model. The operator
vouches for it in the inventory; all other checks are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from grpc import aio
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node
from nonn.answer import ReplyStatus
from nonn.bundle import StudentEntry
from nonn.errors import InputError
from nonn.rpc.checksum import check_sealed
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import DATATYPES, MAX_SAMPLES, read_parameters, read_tensors
from nonn.security import handshake
from nonn.telemetry.printable import printable

__all__ = ["Reply", "ReplyReader", "failure", "reply_limit", "silence"]

Float32 = NDArray[np.float32]

_BLAMELESS = (ReplyStatus.REFUSED, ReplyStatus.GIVEN_UP)
_STATUS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: ReplyStatus.SILENT,
    grpc.StatusCode.UNAVAILABLE: ReplyStatus.UNREACHABLE,
    grpc.StatusCode.INVALID_ARGUMENT: ReplyStatus.REFUSED,
}

ENVELOPE_BYTES = 16 * 1024  # names, shape and parameters around the features; a nonn node needs 300


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """The outcome of asking one node.

    Attributes:
        node: the node that was asked.
        status: whether it answered, or how it failed.
        latency_s: time from asking to the reply or the failure.
        features: features [B, d_i]; None if it failed.
        error: why it failed, as one printable line; empty if it did not.
        lag_s: how much later it came than the replies of all nodes but stragglers.
        num_samples: number of samples of the request.
    """

    node: Node
    status: ReplyStatus
    latency_s: float
    features: Float32 | None = None
    error: str = ""
    lag_s: float = 0.0
    num_samples: int = 1

    def __post_init__(self) -> None:
        if self.error:  # it may quote the node
            object.__setattr__(self, "error", printable(self.error))

    @property
    def ok(self) -> bool:
        """Whether the reply is good."""
        return self.status is ReplyStatus.OK

    @property
    def blameless(self) -> bool:
        """Whether the node is not the cause: the request was bad, or was given up."""
        return self.status in _BLAMELESS


def reply_limit(num_samples: int, width: int) -> int:
    """Bytes of the largest reply: features of so many samples in float32, plus the envelope."""
    return 4 * num_samples * width + ENVELOPE_BYTES


class ReplyReader:
    """Reads the replies of one node.

    Args:
        node: the node.
        student: the student that it runs.
        bundle_hash: hash of the bundle that replies must name.
    """

    def __init__(self, node: Node, student: StudentEntry, bundle_hash: str) -> None:
        self._student, self._bundle_hash, self._foreign = student, bundle_hash, node.foreign
        self._output = node.output
        # A foreign server sends the output of the student's network: it does not encode features.
        self._plain = node.foreign or student.code.dtype == "float32"
        self._dtype = np.dtype("<f4") if self._plain else student.code.wire
        self._datatype, self._row_bytes = DATATYPES[self._dtype], self._dtype.itemsize * student.width

    @property
    def limit(self) -> int:
        """Bytes of the largest reply to any request."""
        return reply_limit(MAX_SAMPLES, self._student.width)

    def read(self, raw: bytes, request_id: str, num_samples: int) -> Float32:
        """Checks a reply and returns its features [B, d_i].

        Raises:
            DataLossError: its checksum is wrong.
            InputError: the reply is too large, malformed, to another request, of another bundle, or not finite.
        """
        width = self._student.width
        if len(raw) > reply_limit(num_samples, width):
            raise InputError(f"oversized: {len(raw)} bytes for {num_samples} × {width} features")
        check_sealed(raw)
        try:
            response = pb.ModelInferResponse.FromString(raw)
        except DecodeError as exc:
            raise InputError(f"{len(raw)} bytes that are not a ModelInferResponse") from exc
        if not self._foreign and response.parameters["nonn_bundle"].string_param != self._bundle_hash:
            bundle = read_parameters(response.parameters).get("nonn_bundle")
            raise InputError(f"of bundle {str(bundle)[:12]}…, not {self._bundle_hash[:12]}…")
        if response.id != request_id:  # a reply to another request is not fused, however good it is
            raise InputError(f"to request '{response.id}', not '{request_id}'")
        sent = self._only(response, num_samples)
        if sent is None:
            sent = self._among(response, num_samples)
        features: Float32 = sent if self._plain else self._student.code.decode(sent)
        if np.count_nonzero(np.isfinite(features)) < features.size:  # half of the time of all()
            raise InputError(f"{self._output} contain NaN or infinity")
        return features

    def _only(self, response: Any, num_samples: int) -> NDArray[Any] | None:
        """The features of a reply as nonn nodes write it; None for any other, which ``_among`` reads or refuses."""
        tensors, raws = response.outputs, response.raw_output_contents
        if len(tensors) != 1 or len(raws) != 1:
            return None
        tensor, raw, shape = tensors[0], raws[0], [num_samples, self._student.width]
        usual = tensor.name == self._output and tensor.datatype == self._datatype and tensor.shape == shape
        if not usual or tensor.HasField("contents") or len(raw) != num_samples * self._row_bytes:
            return None
        return np.frombuffer(raw, self._dtype).reshape(shape)

    def _among(self, response: Any, num_samples: int) -> NDArray[Any]:
        """The features among the outputs of any server of the protocol.

        Raises:
            InputError: an output is malformed, or these are missing or have another type or shape.
        """
        tensors = read_tensors(response.outputs, response.raw_output_contents)
        if self._output not in tensors:
            raise InputError(f"no '{self._output}' among its outputs ({', '.join(tensors) or 'none'})")
        sent, wanted = tensors[self._output], (num_samples, self._student.width)
        if sent.dtype != self._dtype or sent.shape != wanted:
            raise InputError(
                f"{sent.dtype} {self._output} {list(sent.shape)}, expected {self._dtype.name} {list(wanted)}"
            )
        return sent


def failure(node: Node, exc: aio.AioRpcError, waited_s: float, num_samples: int = 1) -> Reply:
    """A failed call as a reply, with a short text: gRPC puts the cause of a lost connection after three colons."""
    code, details = exc.code(), exc.details() or ""
    status = _STATUS.get(code, ReplyStatus.FAILED)
    if status is ReplyStatus.SILENT:
        return silence(node, waited_s, num_samples)
    if status is ReplyStatus.UNREACHABLE:
        text = f"unreachable: {handshake.reason(details) or details.rsplit(': ', 1)[-1]}"
    else:
        text = f"{code.name}: {details}"
    return Reply(node, status, waited_s, error=text, num_samples=num_samples)


def silence(node: Node, waited_s: float, num_samples: int = 1) -> Reply:
    """The outcome for a node that sent nothing until the deadline."""
    return Reply(node, ReplyStatus.SILENT, waited_s, error=f"silent for {waited_s:.2f} s", num_samples=num_samples)
