"""report.json: all that a bundle knows about its accuracy, as plain values.

Numbers come from the bundle's table of all 2^N answering sets, those of classes and calibration from its recorded test
features, so no device is run again; what a live cluster measured is handed in and stands beside the prediction. Table,
plots and page read this dict and nothing else, apart from the filter graph, which is too big for it.

Limits: as many devices as ``nonn.reliability.subsets`` enumerates. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, Student
from nonn.bundle.traffic import traffic
from nonn.errors import BundleError, InputError
from nonn.reliability.importance import pair_losses, shapley_values
from nonn.reliability.subsets import SubsetTable, independent_law, mask_of
from nonn.report.classes import class_report
from nonn.report.methods import method_rows
from nonn.report.risk import availability, one_or_all

__all__ = ["SCHEMA", "build_report", "filter_graph"]

SCHEMA = 1


def build_report(
    bundle: Bundle, measured_live: Iterable[Mapping[str, Any]] = (), others: Sequence[Bundle] = ()
) -> dict[str, Any]:
    """Reports a bundle.

    Args:
        bundle: what to report.
        measured_live: what a cluster measured, a mapping a row: ``answered`` (device numbers), ``accuracy``,
            ``requests`` and ``lost``; ``failed`` and ``predicted`` are filled in where they are left out.
        others: bundles to show beside this one, as further methods.

    Returns:
        report.json. ``accuracy_by_failures`` runs from 0 to N − 1 failed devices over all subsets; ``value`` of a
        device is its Birnbaum importance under the failure law of ``expected_accuracy``, ``shapley`` its Shapley value;
        ``pair_losses`` [N, N] is the accuracy when exactly two devices are gone (on the diagonal: one).
        ``availability`` and ``by_class`` (None without features) are those of ``nonn.report.risk`` and
        ``nonn.report.classes``; ``traffic`` is that of ``nonn.bundle.traffic``; ``precision`` compares with the same
        students in float, None where they are; ``methods`` holds this bundle and the others, or nothing where there
        are none.

    Raises:
        BundleError: the bundle lacks something that belongs into a report, or its failure law is none.
        InputError: a live row lacks a key, or its values cannot be.
    """
    manifest, table = bundle.manifest, bundle.table
    p_fail = bundle.p_fail
    law = np.array(p_fail)
    value, shapley, accuracy = table.importance(law), shapley_values(table), table.accuracy
    return {
        "schema": SCHEMA,
        "experiment": manifest.experiment,
        "bundle": bundle.hash,
        "data": {
            **_taken(bundle, "data", ("name", "split")),
            "samples": table.samples,
            "classes": len(manifest.classes),
            "class_names": list(manifest.classes),
            "fingerprint": manifest.data.get("fingerprint", ""),
        },
        "teacher": _taken(bundle, "teacher", ("model", "params", "macs", "accuracy")),
        "devices": [
            {
                **_device(bundle, student),
                "accuracy_alone": float(accuracy[mask_of([student.device])]),
                "value": float(value[student.device]),
                "shapley": float(shapley[student.device]),
            }
            for student in manifest.students
        ],
        "traffic": traffic(manifest),
        "precision": _precision(bundle),
        "fusion": bundle.head.kind,
        "accuracy_by_failures": table.by_failures(),
        "expected_accuracy": {
            "law": independent_law(p_fail),
            "value": table.expected(law),
            "p_fail": one_or_all(p_fail),
        },
        "pair_losses": pair_losses(table).tolist(),
        "availability": availability(table, p_fail),
        "by_class": class_report(bundle),
        "methods": method_rows([bundle, *others]) if others else [],
        "measured_live": [_live(row, table) for row in measured_live],
        "provenance": dict(manifest.provenance),
    }


def filter_graph(bundle: Bundle) -> NDArray[Any] | None:
    """Weights of the filter graph [C, C], or None where the bundle holds none.

    Raises:
        BundleError: the graph cannot be read, or has fewer filters than the parts name.
    """
    if "graph.npz" not in bundle.manifest.files:
        return None
    weights = bundle.arrays("graph.npz").get("weights")
    least = 1 + max((c for part in bundle.manifest.parts for c in part), default=0)
    if weights is None or weights.ndim != 2 or weights.shape[0] != weights.shape[1] or len(weights) < least:
        found = "no array 'weights'" if weights is None else f"weights of shape {list(weights.shape)}"
        raise BundleError(f"{bundle.path}/graph.npz: {found}; the parts need [C, C] with C ≥ {least}")
    return weights


def _device(bundle: Bundle, student: Student) -> dict[str, Any]:
    """What the manifest says of one device."""
    learned = student.parts or (student.part,)
    for part in (student.part, *learned):
        if not 0 <= part < len(bundle.manifest.parts):
            raise BundleError(f"{bundle.path}: device {student.device} has part {part}, which does not exist")
    return {
        "node": student.device,
        "part": student.part,
        "filters": sum(len(bundle.manifest.parts[part]) for part in learned),
        "params": student.params,
        "macs": student.macs,
        "model_bytes": student.bytes,
        "weights": student.weights,
        "features": student.dtype,
        "feature_bytes": student.feature_bytes,
    }


def _precision(bundle: Bundle) -> dict[str, Any] | None:
    """Size and accuracy against the same students in float; None for a bundle in float."""
    floats = bundle.manifest.provenance.get("float32")
    if floats is None:
        return None
    try:
        rows = zip(bundle.table.by_failures(), floats["accuracy_by_failures"], strict=True)
        original = sum(floats["model_bytes"])
        return {
            "model_bytes": sum(student.bytes for student in bundle.manifest.students),
            "float32_model_bytes": original,
            "size_ratio": sum(student.bytes for student in bundle.manifest.students) / original,
            "drop_by_failures": [{"failed": now["failed"], "drop": then["mean"] - now["mean"]} for now, then in rows],
            "drop_alone": [
                then - float(bundle.table.accuracy[1 << i]) for i, then in enumerate(floats["accuracy_alone"])
            ],
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as exc:
        raise BundleError(f"{bundle.path}: the manifest's 'float32' cannot be read ({exc}); build it again") from exc


def _taken(bundle: Bundle, section: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Some keys of one section of the manifest."""
    values: Mapping[str, Any] = getattr(bundle.manifest, section)
    missing = [key for key in keys if key not in values]
    if missing:
        raise BundleError(
            f"{bundle.path}: the manifest's '{section}' lacks {', '.join(missing)}; build the bundle again"
        )
    return {key: values[key] for key in keys}


def _live(row: Mapping[str, Any], table: SubsetTable) -> dict[str, Any]:
    """One live measurement, checked, in the order of the contract; further keys are kept."""
    missing = [key for key in ("answered", "accuracy", "requests", "lost") if key not in row]
    if missing:
        raise InputError(f"measured_live: a row lacks {', '.join(missing)}")
    answered = sorted(int(i) for i in row["answered"])
    if len(set(answered)) < len(answered) or not set(answered) <= set(range(table.num_devices)):
        raise InputError(f"measured_live: answered {answered} are no set of devices 0 to {table.num_devices - 1}")
    checked: dict[str, Any] = {
        "failed": int(row.get("failed", table.num_devices - len(answered))),
        "answered": answered,
        "accuracy": float(row["accuracy"]),
        "predicted": float(row.get("predicted", table.accuracy[mask_of(answered)])),
        "requests": int(row["requests"]),
        "lost": int(row["lost"]),
    }
    for key in ("accuracy", "predicted"):
        if not (math.isfinite(checked[key]) and 0 <= checked[key] <= 1):
            raise InputError(f"measured_live: {key} = {checked[key]} with {answered} answering is no accuracy")
    return {**row, **checked}
