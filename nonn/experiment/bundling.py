"""From trained students to a bundle: the fusion head, the exported students and the accuracy of every subset.

All measurements use the exported files, in the precision in which devices run them.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, InputSpec, Manifest, StudentEntry, evidence_arrays, load_bundle, write_bundle
from nonn.bundle.known import FILE as KNOWN
from nonn.bundle.known import draw_inputs
from nonn.bundle.manifest import CONSISTENCY, SMOOTHING
from nonn.bundle.smoothed import SmoothedTable
from nonn.bundle.views import select_view
from nonn.config import Experiment, SensingConfig
from nonn.data import Dataset
from nonn.distill import Students
from nonn.enumeration import evaluate_subsets
from nonn.enumeration.smoothed import measure_smoothed
from nonn.errors import BundleError, ConfigError
from nonn.experiment.kept import DIGITS, restore, set_aside
from nonn.experiment.keys import stage_inputs
from nonn.experiment.teachers import teacher_outcomes
from nonn.experiment.training import Trained
from nonn.experiment.verdict import say_verdict
from nonn.experiment.workspace import Workspace
from nonn.export import export_onnx, run_onnx
from nonn.export.deploy import Deployed, calibration_sample, deploy, float_reference
from nonn.files import atomic_file
from nonn.fusion import Head
from nonn.fusion.consistency_fit import fit_consistency
from nonn.partition import Partition
from nonn.provenance import code_version
from nonn.reliability.guarantees import check_guarantees
from nonn.reliability.laws import parse_law
from nonn.reliability.outcomes import kept_samples
from nonn.reliability.sampled_evidence import AnyEvidence, SampledEvidence
from nonn.reliability.table import SubsetTable
from nonn.report.risk import report_laws
from nonn.sensing.smoothing import learn, weight_of
from nonn.students import measure_cost
from nonn.students.devices import failure_law, resolve_devices
from nonn.teacher.binary_wrn import flash_bytes

__all__ = ["bundle_students"]

FORMAT = 1  # increased when the bundle changes so that older ones must be built again

_CHECKED = 64  # held-out samples with which every exported student is checked
_TRAINING = 4096  # training samples that the consistency test is fitted to


def bundle_students(space: Workspace, trained: Trained) -> Bundle:
    """The bundle, with the accuracy of every subset of devices on the test split; built if it does not exist.

    Raises:
        BundleError: an exported student differs from the original.
        GuaranteeError: the bundle would break a guarantee; nothing is written.
    """
    config = space.experiment
    stage = space.stage(
        "bundle.build",
        {
            "format": FORMAT,
            "students": trained.students.stage.key,
            "fusion": stage_inputs(config.fusion),
            "export": stage_inputs(config.export),
            "law": failure_law(config.devices),
            "guarantees": dataclasses.asdict(config.guarantees),
            "name": config.experiment.name,
            # Absent in bundles of nodes that do not sense, which are therefore not built again.
            **({"sensing": _sensing_inputs(config.sensing)} if config.sensing.rate_hz else {}),
        },
    )
    target = space.folder / "bundle"
    if stage.done:
        file = stage.folder / "hash"
        wanted = file.read_text() if file.exists() else ""
        try:
            bundle = load_bundle(target)
            if bundle.hash == wanted:
                say_verdict(space, trained, bundle.head, bundle.accuracies)
                return bundle
        except BundleError as exc:
            space.progress.say(f"the bundle is built again: {exc}")
        if (kept := restore(target, wanted)) is not None:
            space.progress.say(f"bundle {wanted[:DIGITS]} of an earlier run with the same inputs is back in {target}")
            return kept
    old = set_aside(target)
    bundle = _build(space, trained, target)
    if old is not None and old[0] == bundle.hash:
        shutil.rmtree(old[1])
    elif old is not None:
        space.progress.say(f"bundle {bundle.hash[:DIGITS]} replaces {old[0][:DIGITS]}, which is kept in {old[1]}")
    with atomic_file(stage.folder / "hash") as file:
        file.write_text(bundle.hash)
    stage.finish()
    return bundle


def _build(space: Workspace, trained: Trained, target: Path) -> Bundle:
    """Fits the head, exports the students, records test features, enumerates all subsets and writes the bundle."""
    config, labels = space.experiment, space.data.test.labels
    students = trained.students.network
    with space.progress.bar("fusion", 1) as tick:
        head = space.heads.fit(trained.teacher.network, students)
        tick(1, head.kind)
    exported = _export(space, students, trained.cut.partition)
    with space.progress.bar("all answering sets", 1) as tick:
        laws = report_laws([device.p_fail for device in resolve_devices(config.devices)])
        evidence = evaluate_subsets(head, exported.features, labels, laws)
        tick(1, f"{len(evidence.table.correct):,} × {len(labels):,} samples")
    if isinstance(evidence, SampledEvidence):
        space.progress.say(
            f"{head.num_devices} devices: all subsets with up to {evidence.table.counted} failed ones are evaluated, "
            "and a sample of the others"
        )
    kept = kept_samples(head.num_devices, len(labels), len(evidence.table.correct))
    if len(kept) < len(labels):
        space.progress.say(f"outcomes of {len(kept):,} of {len(labels):,} samples are kept, for intervals")
    say_verdict(space, trained, head, evidence.table)
    _check_guarantees(config, evidence)
    with space.progress.bar("consistency test", 1) as tick:
        recorded = _tests(space, exported, head)
        tick(1, "" if CONSISTENCY in recorded else "too few devices, classes or held-out samples")
    if config.sensing.smoothing != "none":
        with space.progress.bar("smoothing over time", 1) as tick:
            found = _smoothed(space, exported, head)
            recorded[SMOOTHING] = found.to_arrays()
            tick(1, f"{found.table.accuracy[-1]:.1%} with all devices, {evidence.table.accuracy[-1]:.1%} without it")
    if config.export.recorded:
        recorded["features.npz"] = {"labels": labels, **{f"device_{i}": f for i, f in enumerate(exported.features)}}
    return write_bundle(
        target,
        _manifest(space, trained, exported, head, evidence),
        {i: served.data for i, served in enumerate(exported.deployed)},
        {
            "fusion.npz": head.to_arrays(),
            **evidence_arrays(evidence, teacher_outcomes(space, trained.teacher)[kept]),
            "graph.npz": {"weights": trained.cut.graph},
            **recorded,
        },
        {
            f"students/student-{i}.onnx": served.original
            for i, served in enumerate(exported.deployed)
            if served.data != served.original and config.export.originals
        },
    )


def _tests(space: Workspace, exported: _Exported, head: Head) -> dict[str, Mapping[str, NDArray[Any]]]:
    """Arrays of ``known.npz`` and, with enough devices and held-out samples, of ``consistency.npz``; by file."""
    config, data = space.experiment, space.data
    seed = config.experiment.seed
    spec = _input_spec(data)

    def features(inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        pairs = zip(exported.deployed, space.networks.views, strict=True)
        return [served.features(select_view(inputs, view)) for served, view in pairs]

    known = draw_inputs(spec, seed)
    found: dict[str, Mapping[str, NDArray[Any]]]
    found = {KNOWN: {"inputs": known, **{f"device_{i}": f for i, f in enumerate(features(known))}}}
    training = calibration_sample(data.train.inputs, _TRAINING, seed)
    test = fit_consistency(head, features(training), features(data.held_out.inputs), seed)
    return found if test is None else found | {CONSISTENCY: test.to_arrays()}


def _input_spec(data: Dataset) -> InputSpec:
    return InputSpec(data.input_shape, data.dtype, tuple(data.mean.tolist()), tuple(data.std.tolist()), data.preprocess)


def _manifest(space: Workspace, trained: Trained, exported: _Exported, head: Head, evidence: AnyEvidence) -> Manifest:
    """The manifest of the bundle."""
    config, data, teacher = space.experiment, space.data, trained.teacher.network
    cost = measure_cost(teacher, data.input_shape)
    learned = np.concatenate([data.train.labels, data.held_out.labels])
    provenance = {
        "config": dataclasses.asdict(config),
        "code_version": code_version(),
        "partition": trained.cut.measures,
    }
    if any(served.lossy for served in exported.deployed):
        pairs = zip(exported.deployed, space.networks.views, strict=True)
        exact = [run_onnx(served.original, select_view(data.test.inputs, view)) for served, view in pairs]
        laws = report_laws([device.p_fail for device in resolve_devices(config.devices)])
        original = evaluate_subsets(head, exact, data.test.labels, laws)
        provenance["float32"] = float_reference(original, evidence, exported.deployed)
    return Manifest(
        experiment=config.experiment.name,
        input=_input_spec(data),
        classes=data.classes,
        parts=trained.cut.partition.parts,
        students=tuple(exported.entries),
        files={},
        teacher={
            "model": config.teacher.model,
            "params": cost.params,
            "macs": cost.macs,
            "accuracy": float(teacher_outcomes(space, trained.teacher).mean()),
        },
        data={
            "name": data.name,
            "split": "test",
            "samples": len(data.test),
            "fingerprint": data.fingerprint(),
            "train_samples": np.bincount(learned, minlength=data.num_classes).tolist(),
        },
        provenance=provenance,
        replicas=space.networks.design(trained.cut.partition).devices_of_part(config.devices.count),
        sensing=config.sensing.spec(data.input_shape).measured(data.train.inputs) if config.sensing.rate_hz else None,
    )


def _sensing_inputs(config: SensingConfig) -> dict[str, Any]:
    """The table for the key of the bundle; bundles without smoothing or a tolerance are not built again."""
    tree = dataclasses.asdict(config)
    unused = {"smoothing", "smooth_s"} if config.smoothing == "none" else set()
    unused |= set() if config.tolerance_s else {"tolerance_s"}
    return {key: value for key, value in tree.items() if key not in unused}


def _smoothed(space: Workspace, exported: _Exported, head: Head) -> SmoothedTable:
    """Learns the smoothing from the order of the training labels, and measures it on the test recordings.

    Raises:
        ConfigError: the reader does not say which window follows which.
        DataError: no training window follows another.
    """
    config, data = space.experiment.sensing, space.data
    train, held_out, test = data.train, data.held_out, data.test
    if train.places is None or held_out.places is None or test.places is None:
        raise ConfigError(
            f"sensing.smoothing: the reader '{space.experiment.data.reader}' does not say which window follows which; "
            "set Split.places, or use csv or npz with data.group"
        )
    window_s = (data.input_shape[1] if len(data.input_shape) == 2 else 1) / config.rate_hz
    smoothing = learn(
        config.smoothing,
        np.concatenate([train.labels, held_out.labels]),
        np.concatenate([train.places, held_out.places]),
        data.num_classes,
        weight_of(config.smoothing, config.hop_s or window_s, window_s, config.smooth_s),
    )
    found = measure_smoothed(head, exported.features, test.labels, test.places, smoothing)
    return SmoothedTable(smoothing, SubsetTable(found.correct, len(test)), found.effective, found.runs, found.lag)


@dataclass(frozen=True)
class _Exported:
    """The students as their devices run them, N of each.

    Attributes:
        deployed: files and how they were measured.
        entries: their entries in the manifest.
        features: features of the test split [n, d_i].
    """

    deployed: list[Deployed]
    entries: list[StudentEntry]
    features: list[NDArray[np.float32]]


def _export(space: Workspace, students: Students, partition: Partition) -> _Exported:
    """Exports every student and runs its file over the test split; moves the students to the CPU."""
    config, data = space.experiment, space.data
    learned = space.networks.design(partition).parts_of_device(config.devices.count)
    calibration = calibration_sample(data.train.inputs, config.export.calibration, config.experiment.seed)
    students.cpu()
    result, flash = _Exported([], [], []), dict[str, tuple[int, int]]()
    with space.progress.bar("export", len(learned), "students") as tick:
        for i, student in enumerate(students.individual()):
            view = student.view
            exported = export_onnx(student, student.input_shape, select_view(data.held_out.inputs[:_CHECKED], view))
            served = deploy(config.export, i, exported, select_view(calibration, view))
            result.deployed.append(served)
            result.features.append(served.features(select_view(data.test.inputs, view)))
            cost = measure_cost(student, student.input_shape)
            result.entries.append(
                StudentEntry(
                    i,
                    learned[i][0],
                    f"students/student-{i}{served.suffix}",
                    "",
                    cost.params,
                    cost.macs,
                    0,
                    result.features[i].shape[1],
                    parts=learned[i],
                    view=view,
                    **served.entry(),
                )
            )
            flash |= {student.model: (flash_bytes(student, cost.params), cost.params)}
            tick(i + 1, "")
    for model, (size, params) in flash.items():
        if size:
            space.progress.say(
                f"students {model}: as selectors and signs the weights would have {size:,} bytes, "
                f"as float32 they have {4 * params:,}"
            )
    return result


def _check_guarantees(config: Experiment, evidence: AnyEvidence) -> None:
    """Refuses to write a bundle that breaks a guarantee.

    Raises:
        GuaranteeError: a guarantee is broken; the message names the subset.
    """
    promised = config.guarantees
    if not promised.require:
        return
    law = parse_law(promised.law or failure_law(config.devices), evidence.table.num_devices)
    check_guarantees(evidence, law, promised.require)
