"""Builds report.json of a bundle.

Accuracies come from the bundle's table of all 2^N subsets of devices, or beyond 16 devices of a sample of them, classes
and calibration from its recorded test features, so no device runs again. Intervals come from the outcome of each test
sample, or from the counts where an older bundle lacks the outcomes (``nonn.reliability.evidence``). Measurements of a
live cluster are passed in and shown next to the prediction. NumPy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, StudentEntry
from nonn.bundle.traffic import traffic
from nonn.documents import from_json, to_json
from nonn.errors import BundleError, DataError, InputError, ShapeError
from nonn.provenance import code_version, command_line, machine
from nonn.reliability.evidence import Interval
from nonn.reliability.intervals import share_interval, unpaired_difference, wilson
from nonn.reliability.laws import Law
from nonn.reliability.placement import Speed
from nonn.reliability.sampled import SampledTable
from nonn.reliability.sampled_evidence import AnyEvidence, SampledEvidence
from nonn.reliability.subsets import mask_of
from nonn.reliability.table import AccuracyTable
from nonn.report.against import against_teacher
from nonn.report.class_evaluation import class_report
from nonn.report.document import (
    SCHEMA,
    DataReport,
    DeviceReport,
    Drop,
    ExpectedAccuracy,
    LiveMeasurement,
    Made,
    Precision,
    Report,
    Sampling,
    TeacherReport,
)
from nonn.report.heads import head_report
from nonn.report.methods import check_same_task, method_rows
from nonn.report.plots import Weights
from nonn.report.risk import availability, one_or_all, report_laws
from nonn.report.sensing import sensing_report

__all__ = ["build_report", "filter_graph", "precision_of"]

T = TypeVar("T")
Shares: TypeAlias = tuple[tuple[float, ...], ...]


def build_report(
    bundle: Bundle,
    measured_live: Iterable[LiveMeasurement | Mapping[str, object]] = (),
    others: Sequence[Bundle] = (),
    *,
    timed: bool = False,
) -> Report:
    """Reports a bundle.

    Args:
        bundle: the bundle to report.
        measured_live: measurements of a cluster; a mapping has the keys of ``LiveMeasurement``, of which ``failed``
            and ``predicted`` are optional.
        others: bundles to compare with this one, as further methods.
        timed: measure the time to solve a new subset of devices on this machine.

    Raises:
        BundleError: the bundle lacks something that the report needs, or its failure law is invalid.
        InputError: a measurement lacks a key, a value is invalid, or another bundle has other classes.
    """
    check_same_task([bundle, *others])
    manifest, evidence, table = bundle.manifest, bundle.any_evidence, bundle.accuracies
    p_fail = bundle.p_fail
    alone, together = report_laws(p_fail)[:2]
    data = {
        "samples": table.samples,
        "classes": len(manifest.classes),
        "class_names": manifest.classes,
        "points_per_sample": 100 / table.samples,
        "outcomes": 0 if evidence.outcomes is None else evidence.outcomes.kept,
    }
    pairs, pair_intervals, pair_loss_intervals = _pairs(evidence)
    return Report(
        schema=SCHEMA,
        experiment=manifest.experiment,
        bundle=bundle.hash,
        data=_section(DataReport, bundle, "data", {**manifest.data, **data}),
        teacher=_teacher(bundle),
        devices=_devices(bundle, np.array(p_fail)),
        traffic=traffic(manifest),
        sensing=sensing_report(bundle),
        precision=precision_of(bundle),
        fusion=bundle.head.kind,
        head=head_report(bundle, timed=timed),
        accuracy_by_failures=evidence.by_failures(),
        sampling=_sampling(table),
        expected_accuracy=_expected(evidence, alone, p_fail),
        expected_correlated=_expected(evidence, together, p_fail),
        against_teacher=against_teacher(bundle),
        pair_losses=pairs,
        pair_intervals=pair_intervals,
        pair_loss_intervals=pair_loss_intervals,
        availability=availability(evidence, p_fail),
        by_class=class_report(bundle),
        methods=method_rows([bundle, *others], timed=timed) if others else (),
        measured_live=tuple(_live(row, table) for row in measured_live),
        provenance=dict(manifest.provenance),
        made=Made(
            date=datetime.now(UTC).date().isoformat(),
            command=command_line(),
            code_version=code_version(),
            machine=machine(),
        ),
    )


def filter_graph(bundle: Bundle) -> Weights | None:
    """Weights of the filter graph [C, C], or None where the bundle has none.

    Raises:
        BundleError: the graph cannot be read, or has fewer filters than the parts refer to.
    """
    if "graph.npz" not in bundle.manifest.files:
        return None
    weights = bundle.arrays("graph.npz").get("weights")
    least = 1 + max((c for part in bundle.manifest.parts for c in part), default=0)
    if weights is None or weights.ndim != 2 or weights.shape[0] != weights.shape[1] or len(weights) < least:
        found = "no array 'weights'" if weights is None else f"weights of shape {list(weights.shape)}"
        raise BundleError(f"{bundle.path}/graph.npz: {found}; the parts need [C, C] with C ≥ {least}")
    return weights


def _devices(bundle: Bundle, p_fail: NDArray[np.float64]) -> tuple[DeviceReport, ...]:
    """A row for each device, from the manifest and the table of subsets."""
    evidence, table = bundle.any_evidence, bundle.accuracies
    (value, value_intervals), (shapley, shapley_intervals) = evidence.importance(p_fail), evidence.shapley()
    alone = [table.stated(mask_of([i])) for i in range(table.num_devices)]
    energy = [Speed(joule_per_mac=mac, joule_per_byte=byte) for mac, byte in bundle.energies]
    return tuple(
        DeviceReport(
            node=student.device,
            part=student.part,
            filters=_num_filters(bundle, student),
            params=student.params,
            macs=student.macs,
            model_bytes=student.bytes,
            weights=student.weights,
            features=student.dtype,
            feature_bytes=student.feature_bytes,
            input_bytes=bundle.input_of(student.device).num_bytes,
            accuracy_alone=alone[student.device].accuracy,
            value=float(value[student.device]),
            shapley=float(shapley[student.device]),
            accuracy_alone_interval=alone[student.device].interval,
            value_interval=value_intervals[student.device],
            shapley_interval=shapley_intervals[student.device],
            joules=energy[student.device].joules(
                student.macs, bundle.input_of(student.device).num_bytes + student.feature_bytes
            ),
        )
        for student in bundle.manifest.students
    )


def _teacher(bundle: Bundle) -> TeacherReport:
    """The teacher, with the interval of its accuracy."""
    teacher, samples = _section(TeacherReport, bundle, "teacher", bundle.manifest.teacher), bundle.accuracies.samples
    return dataclasses.replace(teacher, interval=share_interval(teacher.accuracy, samples))


def _pairs(evidence: AnyEvidence) -> tuple[Shares, tuple[tuple[Interval, ...], ...], tuple[tuple[Interval, ...], ...]]:
    """Accuracy without each pair of devices, its interval, and that of the accuracy lost; [N, N] each."""
    table, n = evidence.table, evidence.table.num_devices
    masks = [[table.full & ~(1 << i | 1 << j) for j in range(n)] for i in range(n)]
    stated = [[table.stated(mask) for mask in row] for row in masks]
    return (
        tuple(tuple(pair.accuracy for pair in row) for row in stated),
        tuple(tuple(pair.interval for pair in row) for row in stated),
        tuple(tuple(evidence.lost(row)) for row in masks),
    )


def _expected(evidence: AnyEvidence, law: Law, p_fail: Sequence[float]) -> ExpectedAccuracy:
    """Expected accuracy under a failure law."""
    p = one_or_all(p_fail)
    if isinstance(evidence, SampledEvidence):
        found = evidence.expected(law)
        return ExpectedAccuracy(law=law.text, value=found.value, p_fail=p, interval=found.interval, bound=found.bound)
    weights = evidence.weights(law)
    value, interval = float(weights @ evidence.table.accuracy), evidence.mean(weights[None])[0]
    return ExpectedAccuracy(law=law.text, value=value, p_fail=p, interval=interval)


def _sampling(table: AccuracyTable) -> Sampling | None:
    """What was evaluated, where that is not every subset."""
    if not isinstance(table, SampledTable):
        return None
    return Sampling(
        counted_failed=table.counted,
        subsets=len(table.correct),
        chains=len(table.chains),
        draws={text: len(places) for text, places in table.draws.items()},
    )


def _num_filters(bundle: Bundle, student: StudentEntry) -> int:
    """Number of the teacher's filters that a student learns."""
    learned = student.parts or (student.part,)
    for part in (student.part, *learned):
        if not 0 <= part < len(bundle.manifest.parts):
            raise BundleError(f"{bundle.path}: device {student.device} has part {part}, which does not exist")
    return sum(len(bundle.manifest.parts[part]) for part in learned)


def precision_of(bundle: Bundle) -> Precision | None:
    """Size and accuracy compared with the same students in float; None for a bundle in float."""
    floats = bundle.manifest.provenance.get("float32")
    if floats is None:
        return None
    try:
        rows = list(zip(bundle.accuracies.by_failures(), floats["accuracy_by_failures"], strict=True))
        size, original = sum(student.bytes for student in bundle.manifest.students), sum(floats["model_bytes"])
        ends = floats.get("drop_intervals") or [
            _apart(then["mean"], now.mean, bundle.accuracies.samples) for now, then in rows
        ]
        alone = [(then, bundle.accuracies.stated(1 << i).accuracy) for i, then in enumerate(floats["accuracy_alone"])]
        ends_alone = floats.get("drop_alone_intervals") or [
            _apart(then, now, bundle.accuracies.samples) for then, now in alone
        ]
        return Precision(
            model_bytes=size,
            float32_model_bytes=original,
            size_ratio=size / original,
            drop_by_failures=tuple(
                Drop(failed=now.failed, drop=then["mean"] - now.mean, interval=tuple(map(float, end)))
                for (now, then), end in zip(rows, ends, strict=True)
            ),
            drop_alone=tuple(then - now for then, now in alone),
            drop_alone_intervals=tuple(tuple(map(float, end)) for end in ends_alone),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, ShapeError) as exc:
        raise BundleError(f"{bundle.path}: the manifest's 'float32' cannot be read ({exc}); build it again") from exc


def _apart(first: float, second: float, samples: int) -> Interval:
    """Interval of the difference of two accuracies whose samples cannot be compared: too wide."""
    ends = [wilson(accuracy * samples, samples) for accuracy in (first, second)]
    low, high = unpaired_difference(first, ends[0], second, ends[1])
    return float(low), float(high)


def _section(cls: type[T], bundle: Bundle, section: str, values: Mapping[str, object]) -> T:
    """Reads one section of the manifest into a document."""
    try:
        return from_json(cls, values, f"{bundle.path}: the manifest's '{section}'")
    except DataError as exc:
        raise BundleError(f"{exc}; build the bundle again") from exc


def _live(row: LiveMeasurement | Mapping[str, object], table: AccuracyTable) -> LiveMeasurement:
    """One live measurement, checked, with defaults for optional keys."""
    given = to_json(row)
    try:
        live = from_json(LiveMeasurement, {"failed": 0, "predicted": 0.0, **given}, "measured_live: a row")
    except DataError as exc:
        raise InputError(str(exc)) from exc
    answered = sorted(live.answered)
    if len(set(answered)) < len(answered) or not set(answered) <= set(range(table.num_devices)):
        raise InputError(f"measured_live: answered {answered} is not a set of devices 0 to {table.num_devices - 1}")
    predicted = live.predicted if "predicted" in given else table.stated(mask_of(answered)).accuracy
    distinct = min(live.requests - live.lost, table.samples)  # requests may repeat samples
    return dataclasses.replace(
        live,
        answered=tuple(answered),
        interval=share_interval(live.accuracy, distinct) if distinct > 0 else None,
        predicted_interval=share_interval(predicted, table.samples),
        failed=live.failed if "failed" in given else table.num_devices - len(answered),
        predicted=predicted,
    )
