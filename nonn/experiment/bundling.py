"""From trained students to a bundle: the fusion head, the exported students and the accuracy of every answering set.

All that is measured here is measured through the exported files, in the precision in which devices run them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, InputSpec, Manifest, write_bundle
from nonn.bundle import Student as StudentEntry
from nonn.bundle.views import seen
from nonn.cli.console import bar
from nonn.config import Experiment
from nonn.data import Dataset
from nonn.distill import Students
from nonn.distill.heads import HeadFitter
from nonn.enumeration import enumerate_subsets
from nonn.experiment.networks import Networks
from nonn.export import export_onnx, run_onnx
from nonn.export.deploy import Deployed, calibration_sample, deploy, float_reference
from nonn.partition import Partition
from nonn.provenance import code_version
from nonn.reliability.subsets import SubsetTable
from nonn.students import measure_cost
from nonn.students.devices import failure_law
from nonn.teacher import Teacher, measure_accuracy

__all__ = ["build_bundle"]

_CHECKED = 64  # held-out samples that every exported student is checked with


def build_bundle(
    target: Path,
    networks: Networks,
    teacher: Teacher,
    students: Students,
    partition: Partition,
    graph: NDArray[np.float32],
    *,
    measures: Mapping[str, Any],
    fitter: HeadFitter,
) -> Bundle:
    """Fits the head, exports the students, records test features and enumerates all answering sets.

    Args:
        target: folder of the bundle; one that is there is replaced.
        networks: of the experiment, with its data.
        teacher: trained.
        students: trained; they are on the CPU afterwards.
        partition: that the students learned.
        graph: weights of the filter graph [C, C].
        measures: of the partition, for the manifest.
        fitter: fits the fusion head.

    Raises:
        BundleError: a student does not survive its export.
        GuaranteeError: the bundle would break a promise; nothing is written.
    """
    config, data = networks.experiment, networks.data
    design = networks.design(partition)
    learned = design.parts_of_device(config.devices.count)
    with bar("fusion", 1) as tick:
        head = fitter.fit(teacher, students)
        tick(1, head.kind)
    deployed, entries, features = _export(config, data, students, learned)
    with bar("all answering sets", 1) as tick:
        table = enumerate_subsets(head, features, data.test.labels)
        tick(1, f"{len(table.correct):,} × {table.samples:,} samples")
    _check_guarantees(config, table)
    floats: dict[str, Any] = {}
    if any(served.lossy for served in deployed):
        exact = [run_onnx(d.original, seen(data.test.inputs, v)) for d, v in zip(deployed, networks.views, strict=True)]
        floats["float32"] = float_reference(enumerate_subsets(head, exact, data.test.labels), deployed)
    cost = measure_cost(teacher, data.input_shape)
    manifest = Manifest(
        experiment=config.experiment.name,
        input=InputSpec(data.input_shape, data.dtype, tuple(data.mean.tolist()), tuple(data.std.tolist())),
        classes=data.classes,
        parts=partition.parts,
        students=tuple(entries),
        files={},
        teacher={
            "model": config.teacher.model,
            "params": cost.params,
            "macs": cost.macs,
            "accuracy": measure_accuracy(teacher, data.test, fitter.device),
        },
        data={
            "name": data.name,
            "split": "test",
            "samples": len(data.test),
            "fingerprint": data.fingerprint(),
        },
        provenance={
            "config": dataclasses.asdict(config),
            "code_version": code_version(),
            "partition": measures,
            **floats,
        },
        replicas=design.devices_of_part(config.devices.count),
    )
    recorded: dict[str, Mapping[str, NDArray[Any]]] = {}
    if config.export.recorded:
        recorded["features.npz"] = {"labels": data.test.labels, **{f"device_{i}": f for i, f in enumerate(features)}}
    return write_bundle(
        target,
        manifest,
        {i: served.data for i, served in enumerate(deployed)},
        {
            "fusion.npz": head.to_arrays(),
            "accuracy.npz": {"correct": table.correct, "samples": np.array(table.samples)},
            "graph.npz": {"weights": graph},
            **recorded,
        },
        {f"students/student-{i}.onnx": s.original for i, s in enumerate(deployed) if s.data != s.original},
    )


def _export(
    config: Experiment, data: Dataset, students: Students, learned: Sequence[tuple[int, ...]]
) -> tuple[list[Deployed], list[StudentEntry], list[NDArray[np.float32]]]:
    """Every student as its device runs it, its entry in the manifest, and its features of the test split [n, d_i]."""
    deployed, entries, features = list[Deployed](), [], []
    calibration = calibration_sample(data.train.inputs, config.export.calibration, config.experiment.seed)
    students.cpu()
    with bar("export", len(learned), "students") as tick:
        for i, student in enumerate(students.apart()):
            view = student.view
            exported = export_onnx(student, student.input_shape, seen(data.held_out.inputs[:_CHECKED], view))
            served = deploy(config.export, i, exported, seen(calibration, view))
            deployed.append(served)
            features.append(served.features(seen(data.test.inputs, view)))
            cost, width = measure_cost(student, student.input_shape), features[i].shape[1]
            entries.append(
                StudentEntry(
                    i,
                    learned[i][0],
                    f"students/student-{i}{served.suffix}",
                    "",
                    cost.params,
                    cost.macs,
                    0,
                    width,
                    parts=learned[i],
                    view=view,
                    **served.entry(),
                )
            )
            tick(i + 1, "")
    return deployed, entries, features


def _check_guarantees(config: Experiment, table: SubsetTable) -> None:
    """Refuses to write a bundle that breaks a promise.

    Raises:
        GuaranteeError: names the answering set that breaks it.
    """
    promised = config.guarantees
    if not promised.require:
        return
    from nonn.reliability.guarantees import check_guarantees  # it judges bundles of any origin, after the fact too
    from nonn.reliability.laws import parse_law

    law = parse_law(promised.law or failure_law(config.devices), table.num_devices)
    check_guarantees(table, law, promised.require)
