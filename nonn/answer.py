"""A fused answer and its wire format, shared by aggregator and client.

The metadata of an answer (which devices answered, the expected accuracy of that subset) is sent both as response
parameters and as output tensors, since many clients of the protocol read only tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.prediction import Prediction
from nonn.errors import InputError
from nonn.rpc.wire import Array, Parameter, read_parameters, read_tensors
from nonn.telemetry.printable import printable

__all__ = ["MODEL", "Answer", "ReplyStatus"]

MODEL = "nonn"  # name of the fused model in the protocol
_INTERVAL = ("nonn_expected_accuracy_low", "nonn_expected_accuracy_high")
_ESTIMATED = "nonn_expected_accuracy_estimated"
_LARGEST = 2**63 - 1  # of an integer parameter: masks of more than 63 devices do not fit


class ReplyStatus(IntEnum):
    """Outcome of one node in one request, for programs; the texts next to it are for people."""

    OK = 0
    SILENT = 1
    """No reply before the deadline."""
    UNREACHABLE = 2
    """No connection, or it broke."""
    REFUSED = 3
    """The node rejected the request as invalid, which is no failure of the node."""
    MALFORMED = 4
    """The reply failed a check: its size, request, bundle, tensors or values."""
    FAILED = 5
    """Any other error of the node."""
    REMOVED = 6
    """The node left the cluster during the request."""
    GIVEN_UP = 7
    """The request was cancelled before the node answered."""
    NOT_AWAITED = 8
    """The request was answered without the node: waiting would have cost more than it was worth."""
    LEFT_OUT = 9
    """No request was sent: the node is out after earlier failures."""
    NOT_ASKED = 10
    """No request was sent for another reason, for example to a replica of its student instead."""
    INCONSISTENT = 11
    """Its features contradict those of the other devices, and were not fused."""
    NOT_FUSED = 12
    """It answered, but the head of all devices that answered was not solved in time; a subset was fused."""


@dataclass(frozen=True, eq=False)
class Answer(Prediction):
    """The fused answer of the devices that replied.

    Attributes:
        failures: reason for each missing node, by node id; for people.
        statuses: the same for programs; set only in the aggregator's process, empty elsewhere.
        features: device → its features [B, d_i]; set only in the aggregator's process, empty elsewhere.
        early: fused before the deadline without a device that might still have answered.
        latency_s: from request to answer, measured where this object was created.
    """

    failures: Mapping[str, str] = field(default_factory=dict)
    statuses: Mapping[str, ReplyStatus] = field(default_factory=dict)
    features: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    early: bool = False
    latency_s: float = 0.0

    def outputs(self) -> dict[str, Array]:
        """The output tensors; all have the batch as their first axis, as clients expect."""
        batch = len(self.logits)
        return {
            "logits": self.logits,
            "confidence": self.confidence,
            "answered": self.answered[None].repeat(batch, axis=0),
            "expected_accuracy": np.full(batch, self.expected_accuracy, np.float32),
        }

    def parameters(self) -> dict[str, Parameter]:
        """The response parameters."""
        parameters: dict[str, Parameter] = {
            "nonn_mask": self.mask,
            "nonn_degraded": self.degraded,
            "nonn_plan": self.bundle,
            "nonn_expected_accuracy": self.expected_accuracy,
        }
        if self.expected_accuracy_interval is not None:
            parameters |= dict(zip(_INTERVAL, self.expected_accuracy_interval, strict=True))
        if self.expected_accuracy_estimated:
            parameters[_ESTIMATED] = True
        if self.mask > _LARGEST:  # the tensor "answered" has it
            del parameters["nonn_mask"]
        if self.early:
            parameters["nonn_early"] = True
        if self.failures:
            parameters["nonn_failures"] = json.dumps(self.failures)
        return parameters

    def rows(self, classes: Sequence[str], first: int = 0) -> Iterator[dict[str, Any]]:
        """One row of JSON for each input of the batch, as ``nonn predict`` and the dashboard show it.

        Args:
            classes: names of the classes [K].
            first: number of the first input.
        """
        for index, label in enumerate(self.labels.tolist()):
            yield {
                "index": first + index,
                "label": label,
                "class": classes[label],
                "confidence": float(self.confidence[index]),
                "answered": self.answered.nonzero()[0].tolist(),
                "degraded": self.degraded,
                "expected_accuracy": self.expected_accuracy,
                "expected_accuracy_interval": self.expected_accuracy_interval,
                **({"expected_accuracy_estimated": True} if self.expected_accuracy_estimated else {}),
                "failures": dict(self.failures),
            }

    @classmethod
    def from_response(cls, response: Any, latency_s: float) -> Answer:
        """Reads a ModelInferResponse of an aggregator.

        Args:
            response: the message, with all outputs.
            latency_s: measured by the caller.

        Raises:
            InputError: the response is not from an aggregator.
        """
        tensors = read_tensors(response.outputs, response.raw_output_contents)
        return cls.read(tensors, read_parameters(response.parameters), latency_s)

    @classmethod
    def read(cls, tensors: Mapping[str, Array], parameters: Mapping[str, Parameter], latency_s: float) -> Answer:
        """The inverse of ``outputs`` and ``parameters``.

        Args:
            tensors: all outputs, by name.
            parameters: response parameters.
            latency_s: measured by the caller.

        Raises:
            InputError: they are not of an aggregator.
        """
        try:
            ends = [float(parameters[key]) for key in _INTERVAL if key in parameters]
            return cls(
                logits=tensors["logits"],
                confidence=tensors["confidence"],
                answered=tensors["answered"][0],
                degraded=bool(parameters["nonn_degraded"]),
                bundle=str(parameters["nonn_plan"]),
                expected_accuracy=float(parameters["nonn_expected_accuracy"]),
                failures={
                    printable(str(node)): printable(str(reason))
                    for node, reason in json.loads(str(parameters.get("nonn_failures", "{}"))).items()
                },
                early=bool(parameters.get("nonn_early", False)),
                latency_s=latency_s,
                expected_accuracy_interval=(ends[0], ends[1]) if len(ends) == 2 else None,
                expected_accuracy_estimated=bool(parameters.get(_ESTIMATED, False)),
            )
        except (KeyError, IndexError) as exc:
            raise InputError(f"the response has no {exc}: it is not the answer of a nonn aggregator") from exc
