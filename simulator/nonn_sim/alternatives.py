"""Alternative deployments of the same task on the same devices, for comparison rows.

All rows share one world: devices, links, faults, arrivals, draws and policy. The note of a row states its assumptions,
which favour the alternative where there is a choice.

- one device runs the whole teacher;
- every device runs the whole teacher, and the first answer wins (replication);
- every layer of the teacher is split over all devices (MoDNN, Mao et al., DATE 2017): compute is divided by N, and at
  every layer boundary the feature map is gathered from the devices and distributed again, so one loss is fatal;
- the bundle's students under one head whose absent inputs are zeros (NoNN, Bhardwaj et al. 2019, arXiv 1907.11804).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nonn.bundle import Bundle
from nonn.bundle.manifest import FEATURES
from nonn.bundle.traffic import FLOAT_BYTES, boundary_elements
from nonn.enumeration import enumerate_subsets
from nonn.fusion import LinearHead, ZeroFill
from nonn.reliability.table import AccuracyOf
from nonn_sim.deployments import AccuracyIf, Deployment, message_bytes, student_work
from nonn_sim.links import DeviceWork
from nonn_sim.scenario import NodeConfig

__all__ = ["alternatives", "boundary_elements"]

# Enumerating the subsets of the zero-fill head takes 2^N small products of the recorded features.
MAX_ZERO_FILL_DEVICES = 12


def alternatives(bundle: Bundle, nodes: Sequence[NodeConfig], batch: int = 1) -> tuple[list[Deployment], list[str]]:
    """All comparison rows that the bundle has the numbers for.

    Args:
        bundle: a bundle with the teacher's MACs and accuracy in its manifest.
        nodes: settings of the devices [N].
        batch: samples in one request.

    Returns:
        The deployments, and a line for each missing row with the reason.
    """
    rows: list[Deployment] = []
    missing: list[str] = []
    teacher = bundle.manifest.teacher
    macs, accuracy = float(teacher.get("macs", 0)), teacher.get("accuracy")
    if macs and accuracy is not None:
        rows += _teacher_rows(bundle, nodes, batch, macs, float(accuracy))
        elements = boundary_elements(str(teacher.get("model", "")), bundle.manifest.input.shape)
        if elements is None:
            missing.append(f"layer splitting: the feature maps of '{teacher.get('model')}' are not known; a wrn's are")
        elif bundle.num_devices > 1:
            rows.append(_layer_splitting(bundle, batch, macs, float(accuracy), elements))
    else:
        missing.append("teacher rows: the manifest does not give the teacher's macs and accuracy")
    table, note = _zero_fill_accuracy(bundle)
    if table is None:
        missing.append(f"NoNN: {note}")
    else:
        students = bundle.manifest.students
        rows.append(
            Deployment(
                name="NoNN fusion",
                devices=tuple(range(bundle.num_devices)),
                work=student_work(bundle, batch),
                macs_of_service=tuple(float(s.macs) for s in students),
                accuracy=table,
                note=note,
            )
        )
    return rows, missing


def _teacher_rows(
    bundle: Bundle, nodes: Sequence[NodeConfig], batch: int, macs: float, accuracy: float
) -> list[Deployment]:
    """The whole teacher on one device, and on every device."""
    size = message_bytes(bundle, batch, bundle.manifest.input, len(bundle.manifest.classes))
    student_macs = [float(s.macs) for s in bundle.manifest.students]
    whole = DeviceWork(batch * macs, *size)
    times = [whole.service_s(node, own) for node, own in zip(nodes, student_macs, strict=True)]
    best = int(np.argmin(times))
    n = bundle.num_devices
    return [
        Deployment(
            "teacher on one device",
            (best,),
            (whole,),
            (student_macs[best],),
            np.array([0.0, accuracy]),
            note=f"on the fastest, device {best}",
        ),
        Deployment(
            "teacher on every device",
            tuple(range(n)),
            (whole,) * n,
            tuple(student_macs),
            AccuracyIf(accuracy, 1),
            first_wins=True,
            note="a request goes to every device, the first answer wins, the others are wasted",
        ),
    ]


def _layer_splitting(bundle: Bundle, batch: int, macs: float, accuracy: float, elements: list[int]) -> Deployment:
    """Every layer over all devices, in equal shares."""
    n = bundle.num_devices
    student_macs = tuple(float(s.macs) for s in bundle.manifest.students)
    request_bytes, _ = message_bytes(bundle, batch, bundle.manifest.input, len(bundle.manifest.classes))
    maps_bytes = batch * FLOAT_BYTES * sum(elements)
    # A device sends its share of every map and receives its share of the next layer's input, which has the same total
    # size; halos at the edges of shares are ignored.
    work = DeviceWork(batch * macs / n, (request_bytes + maps_bytes) / n, maps_bytes / n, crossings=len(elements))
    return Deployment(
        "layer splitting",
        tuple(range(n)),
        (work,) * n,
        student_macs,
        AccuracyIf(accuracy, n),
        needs_all=True,
        note=f"{len(elements)} layer boundaries, {2 * maps_bytes:,} bytes of feature maps a request; equal shares",
    )


def _zero_fill_accuracy(bundle: Bundle) -> tuple[AccuracyOf | None, str]:
    """Accuracy of every subset under one head with zeros for absent devices, and its assumption."""
    if isinstance(bundle.head, ZeroFill):
        return bundle.accuracies.lookup(), "the bundle's own head is this one"
    if FEATURES not in bundle.manifest.files:
        return None, "the bundle has no features.npz to fuse again"
    if bundle.num_devices > MAX_ZERO_FILL_DEVICES:
        return None, f"{bundle.num_devices} devices; fused again for up to {MAX_ZERO_FILL_DEVICES}"
    if not isinstance(bundle.head, LinearHead):
        return None, f"the bundle's head '{bundle.head.kind}' is not linear"
    weight, bias = bundle.head.weights((1 << bundle.num_devices) - 1)
    features, labels = bundle.features
    table = enumerate_subsets(ZeroFill(weight, bias, bundle.head.widths), features, labels)
    return table.lookup(), "the same students under the head of the full set; absent devices count as zeros"
