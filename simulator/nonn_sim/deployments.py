"""Deployments of a task on devices: that of the bundle, and the alternatives compared with it.

A deployment has the work of a request on each device and the accuracy of each subset of devices. All else (devices,
links, faults, load and policy) is part of the scenario and the same for all deployments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from nonn.bundle import Bundle, InputSpec
from nonn.reliability.table import AccuracyOf
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import add_tensors, new_request, write_parameters
from nonn_sim.links import DeviceWork

__all__ = ["AccuracyIf", "Deployment", "bundle_deployment", "message_bytes", "student_work"]


@dataclass(frozen=True, eq=False)
class Deployment:
    """A task on some of the devices.

    Attributes:
        name: name of the row.
        devices: numbers of the devices in use, as in the scenario [n].
        work: work of a request on each device [n].
        macs_of_service: multiply-accumulates that take ``service_s`` on each device [n].
        accuracy: of each subset, by mask; bit j is ``devices[j]``, or student j where ``students`` are given.
        needs_all: one missing device loses the answer.
        first_wins: the first good reply is the answer.
        note: assumptions of the row.
        students: student of each device [n]; devices with the same student are replicas. Empty: one each.
    """

    name: str
    devices: tuple[int, ...]
    work: tuple[DeviceWork, ...]
    macs_of_service: tuple[float, ...]
    accuracy: AccuracyOf = field(repr=False)
    needs_all: bool = False
    first_wins: bool = False
    note: str = ""
    students: tuple[int, ...] = ()

    @property
    def full(self) -> int:
        """The mask of all devices, or of all students."""
        return (1 << len(set(self.students) or self.devices)) - 1


def bundle_deployment(bundle: Bundle, batch: int = 1, replicas: int = 1) -> Deployment:
    """The bundle itself: one student per device, and the accuracy of its own table.

    Args:
        bundle: the artifact.
        batch: samples in one request.
        replicas: devices that run each student; equal answers, so that the table of the students stays exact.
    """
    students = bundle.manifest.students
    copies = f", {replicas} replicas of each" if replicas > 1 else ""
    return Deployment(
        name="nonn",
        devices=tuple(range(bundle.num_devices * replicas)),
        work=student_work(bundle, batch) * replicas,
        macs_of_service=tuple(float(s.macs) for s in students) * replicas,
        accuracy=bundle.accuracies.lookup(),
        note=f"this bundle: {len(bundle.manifest.parts)} parts on {bundle.num_devices} devices{copies}",
        students=tuple(range(bundle.num_devices)) * replicas if replicas > 1 else (),
    )


def student_work(bundle: Bundle, batch: int) -> tuple[DeviceWork, ...]:
    """Work of a request on each device that runs its student: it receives its view and sends its features."""
    return tuple(
        DeviceWork(
            batch * student.macs,
            *message_bytes(bundle, batch, bundle.input_of(student.device), student.width, student.code.wire),
        )
        for student in bundle.manifest.students
    )


def message_bytes(
    bundle: Bundle, batch: int, spec: InputSpec, width: int, dtype: DTypeLike = np.float32
) -> tuple[int, int]:
    """Sizes of a request to a node and of its reply, as protobuf messages; without the headers of HTTP/2 and TCP.

    Args:
        bundle: the bundle named in the messages.
        batch: samples in one request.
        spec: specification of the sent input.
        width: numbers in the reply for each sample.
        dtype: type of these numbers.
    """
    inputs = np.zeros((batch, *spec.shape), spec.dtype)
    hashed = {"nonn_bundle": bundle.hash}
    request = new_request("student-0", {"input": inputs}, hashed, "100000")
    reply = pb.ModelInferResponse(model_name="student-0", model_version=bundle.hash[:12], id="100000")
    add_tensors(reply.outputs, reply.raw_output_contents, {"features": np.zeros((batch, width), dtype)})
    write_parameters(reply.parameters, hashed)
    return request.ByteSize(), reply.ByteSize()


@dataclass(frozen=True)
class AccuracyIf:
    """An accuracy that is reached if enough devices answer, and 0 otherwise."""

    accuracy: float
    at_least: int

    def __getitem__(self, mask: int) -> float:
        """Accuracy of one subset."""
        return self.accuracy if mask.bit_count() >= self.at_least else 0.0
