"""Ways to put a task on devices: the bundle's own, and the alternatives that it is compared with.

A deployment says what a request asks of each device and how accurate each answering set is; everything else, devices,
links, faults, load and the policy, is the scenario's and the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nonn.bundle import Bundle, InputSpec
from nonn.reliability.subsets import all_masks
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import add_tensors, new_request, write_parameters
from nonn_sim.links import Work

__all__ = ["Deployment", "bundle_deployment", "message_bytes", "student_work"]


@dataclass(frozen=True, eq=False)
class Deployment:
    """A task on some of the devices.

    Attributes:
        name: of the row.
        devices: that take part, by their number in the scenario [n].
        work: what a request asks of each [n].
        macs_of_service: what a device's ``service_s`` is the time of [n].
        accuracy: of each answering set [2^n]; bit j is ``devices[j]``, or student j where ``students`` are given.
        needs_all: one missing device loses the answer.
        first_wins: the first good reply is the answer.
        note: what the row assumes.
        students: student that each device runs [n]; devices with the same one are replicas. Empty is one each.
    """

    name: str
    devices: tuple[int, ...]
    work: tuple[Work, ...]
    macs_of_service: tuple[float, ...]
    accuracy: NDArray[np.float64] = field(repr=False)
    needs_all: bool = False
    first_wins: bool = False
    note: str = ""
    students: tuple[int, ...] = ()


def bundle_deployment(bundle: Bundle, batch: int = 1) -> Deployment:
    """The bundle as it is: one student a device, and the accuracy of its own table.

    Args:
        bundle: the artifact.
        batch: samples in one request.
    """
    students = bundle.manifest.students
    return Deployment(
        name="nonn",
        devices=tuple(range(bundle.num_devices)),
        work=student_work(bundle, batch),
        macs_of_service=tuple(float(s.macs) for s in students),
        accuracy=bundle.table.accuracy,
        note=f"this bundle: {len(bundle.manifest.parts)} parts on {bundle.num_devices} devices",
    )


def student_work(bundle: Bundle, batch: int) -> tuple[Work, ...]:
    """What a request asks of each device that runs its student: its view goes there, its features come back."""
    return tuple(
        Work(
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
        bundle: that the messages name.
        batch: samples.
        spec: of the input that is sent.
        width: numbers that come back for each sample.
        dtype: of those.
    """
    inputs = np.zeros((batch, *spec.shape), spec.dtype)
    hashed = {"nonn_bundle": bundle.hash}
    request = new_request("student-0", {"input": inputs}, hashed, "100000")
    reply = pb.ModelInferResponse(model_name="student-0", model_version=bundle.hash[:12], id="100000")
    add_tensors(reply.outputs, reply.raw_output_contents, {"features": np.zeros((batch, width), dtype)})
    write_parameters(reply.parameters, hashed)
    return request.ByteSize(), reply.ByteSize()


def accuracy_if(num_devices: int, accuracy: float, at_least: int) -> NDArray[np.float64]:
    """A table that is right with this accuracy when enough devices answer, and never otherwise [2^N]."""
    count = np.array([mask.bit_count() for mask in all_masks(num_devices).tolist()])
    return np.where(count >= at_least, accuracy, 0.0)
