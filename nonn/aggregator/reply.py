"""What came of asking one node, checked before it may be fused.

A reply counts only if it is to this very request, of this bundle, of exactly the expected name, dtype and shape, not
larger than that takes, and finite. Whatever else comes is that node's failure, never the request's.

A foreign node, an ordinary server of the Open Inference Protocol, cannot say which bundle its model is of. The
operator vouches for it in the inventory; everything else is checked as strictly.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from grpc import aio
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node
from nonn.bundle import Student
from nonn.errors import InputError
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import MAX_SAMPLES, read_parameters, read_tensors
from nonn.security import handshake

__all__ = ["Reply", "reason", "reply_limit"]

Float32 = NDArray[np.float32]

ENVELOPE_BYTES = 16 * 1024  # names, shape and parameters around the features; a nonn node takes 300


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What came of asking one node.

    Attributes:
        node: that was asked.
        features: [B, d_i]; None if it failed.
        error: why it failed; empty if it did not.
        latency_s: from asking to the reply or the failure.
        timed_out: it failed by silence.
        blameless: it says that the request is bad, which is not its own failure.
    """

    node: Node
    features: Float32 | None
    error: str
    latency_s: float
    timed_out: bool = False
    blameless: bool = False


def reply_limit(num_samples: int, width: int) -> int:
    """Bytes of the largest reply: features of so many samples in float32, and what is around them."""
    return 4 * num_samples * width + ENVELOPE_BYTES


class ReplyReader:
    """Reads the replies of one node.

    Args:
        node: whose.
        student: that it runs.
        bundle_hash: that it must be of.
    """

    def __init__(self, node: Node, student: Student, bundle_hash: str) -> None:
        self._student, self._bundle_hash, self._foreign = student, bundle_hash, node.foreign
        self._output = node.output
        # What a foreign server sends is what the student's network gives: it knows no code for features.
        self._plain = node.foreign or student.code.dtype == "float32"
        self._dtype = np.dtype("<f4") if self._plain else student.code.wire

    @property
    def limit(self) -> int:
        """Bytes of the largest reply to any request."""
        return reply_limit(MAX_SAMPLES, self._student.width)

    def read(self, raw: bytes, request_id: str, num_samples: int) -> Float32:
        """Features of a reply [B, d_i].

        Raises:
            InputError: too large, not a reply, not to this request, of another bundle, or not finite [B, d_i].
        """
        width = self._student.width
        if len(raw) > reply_limit(num_samples, width):
            raise InputError(f"oversized: {len(raw)} bytes for {num_samples} × {width} features")
        try:
            response = pb.ModelInferResponse.FromString(raw)
        except DecodeError as exc:
            raise InputError(f"{len(raw)} bytes that are no ModelInferResponse") from exc
        if not self._foreign and response.parameters["nonn_bundle"].string_param != self._bundle_hash:
            bundle = read_parameters(response.parameters).get("nonn_bundle")
            raise InputError(f"of bundle {str(bundle)[:12]}…, not {self._bundle_hash[:12]}…")
        if response.id != request_id:  # a reply to another request is not fused, however good it is
            raise InputError(f"to request '{response.id}', not '{request_id}'")
        tensors = read_tensors(response.outputs, response.raw_output_contents)
        if self._output not in tensors:
            raise InputError(f"no '{self._output}' among its outputs ({', '.join(tensors) or 'none'})")
        sent = tensors[self._output]
        if sent.dtype != self._dtype or sent.shape != (num_samples, width):
            raise InputError(
                f"{sent.dtype} {self._output} {list(sent.shape)}, expected {self._dtype.name} {[num_samples, width]}"
            )
        features: Float32 = sent if self._plain else self._student.code.decode(sent)
        if not np.isfinite(features).all():
            raise InputError(f"{self._output} hold NaN or infinity")
        return features


def reason(exc: aio.AioRpcError, waited_s: float) -> str:
    """A failed call in a few words; gRPC nests the cause of a lost connection three colons deep."""
    code, details = exc.code(), exc.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"silent for {waited_s:.2f} s"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"unreachable: {handshake.reason(details) or details.rsplit(': ', 1)[-1]}"
    return f"{code.name}: {details}"
