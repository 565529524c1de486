"""The exact results of ``nonn-sim enumerate``, over all subsets, as JSON and as text with the same contents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.reliability.guarantees import Verdict
from nonn.reliability.intervals import share_interval
from nonn.reliability.laws import FirstPassage, Law, assess
from nonn.reliability.laws.requests import Independent
from nonn.reliability.marginal import marginal_values, pair_losses, shapley_values
from nonn.reliability.placement import Machine, price_of_one_more
from nonn.reliability.replicas import failures_with_replicas
from nonn.reliability.subsets import membership
from nonn.reliability.table import SubsetTable
from nonn.report.overview import failures_table
from nonn.report.table import (
    Column,
    IntervalColumn,
    Table,
    TextColumn,
    as_text,
    percent,
    points_of,
    share_of,
    show_interval,
)
from nonn_sim.described import Summary, device_table, heading, held

__all__ = ["exact_summary", "exact_text", "replicated"]

_WORST_CLASSES = 5  # shown in the text


def exact_summary(
    bundle: Bundle,
    table: SubsetTable,
    law: Law,
    levels: Sequence[float],
    verdicts: Sequence[Verdict],
    by_class: NDArray[np.int64] | None,
) -> Summary:
    """The exact results of a bundle.

    Args:
        bundle: the bundle, with the names of devices and classes.
        table: accuracy of all subsets.
        law: failure law.
        levels: accuracies whose availability is computed.
        verdicts: verdicts on promises.
        by_class: correct answers by mask and class [2^N, K], or None.
    """
    probability, outcome = law.probabilities(), assess(table, law, levels)
    shapley, marginal = shapley_values(table), marginal_values(table, probability)
    summary = heading(bundle, "exact", table.samples) | {
        "accuracy_by_failures": table.by_failures(),
        "law": {
            "law": outcome.law,
            "expected": outcome.expected,
            "sd": outcome.sd,
            "quantiles": [{"share": share, "accuracy": value} for share, value in outcome.quantiles.items()],
            "levels": [
                {"level": k.level, "availability": k.availability, "first_fall": _fall(k.first_passage)}
                for k in outcome.levels
            ],
        },
        "devices": [
            {
                "device": i,
                "part": bundle.manifest.students[i].part,
                "accuracy_alone": float(table.accuracy[1 << i]),
                "shapley": float(shapley[i]),
                "marginal": float(marginal[i]),
            }
            for i in range(table.num_devices)
        ],
        "pair_losses": pair_losses(table).tolist(),
    }
    if isinstance(law, Independent):
        p_up, mean = 1 - law.p, float(law.p.mean())
        more = price_of_one_more(table, p_up, Machine(name="replica", p_fail=mean))
        rows = [{"student": r.student, "expected": r.expected, "gain": r.gain} for r in more]
        summary["one_more_device"] = {"p_fail": mean, "students": rows}
    if verdicts:
        summary["guarantees"] = [asdict(verdict) for verdict in verdicts]
    if by_class is not None:
        summary["per_class"] = _per_class(bundle, table, by_class)
    return summary


def _fall(fall: FirstPassage | None) -> dict[str, Any] | None:
    """A first passage as JSON, which has no infinity: never is null."""
    if fall is None:
        return None
    times = {"mean_s": fall.mean_s, "low_s": fall.low_s, "high_s": fall.high_s}
    return {key: value if math.isfinite(value) else None for key, value in times.items()} | {"method": fall.method}


def _per_class(bundle: Bundle, table: SubsetTable, by_class: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Mean accuracy of every class for each number of failures; classes without samples are left out.

    The intervals are those of one subset, so they are too wide for means.
    """
    counts = np.bincount(bundle.features[1], minlength=by_class.shape[1])
    answering = membership(table.num_devices).sum(axis=1)
    means = np.array([by_class[answering == table.num_devices - f].mean(axis=0) for f in range(table.num_devices)])
    return [
        {
            "class": bundle.manifest.classes[k] if k < len(bundle.manifest.classes) else str(k),
            "samples": int(counts[k]),
            "accuracy_by_failures": (means[:, k] / counts[k]).tolist(),
            "intervals": [share_interval(mean / counts[k], counts[k]) for mean in means[:, k].tolist()],
        }
        for k in np.flatnonzero(counts[: by_class.shape[1]])
    ]


def replicated(table: SubsetTable, law: Law, replicas: int) -> Summary:
    """Exact results for several devices of each student, each as reliable as the law's device of that student.

    Args:
        table: accuracy of all subsets of students.
        law: failure law; where its devices do not fail independently, there is no expected accuracy.
        replicas: devices of each student.
    """
    return {
        "replicas": replicas,
        "devices": replicas * table.num_devices,
        "accuracy_by_failures": failures_with_replicas(table, replicas),
        "expected": table.expected(law.p**replicas) if isinstance(law, Independent) else None,
    }


def exact_text(summary: Summary) -> str:
    """An exact summary for a terminal."""
    num_devices, law, samples = len(summary["devices"]), summary["law"], summary["samples"]
    share, point = share_of(samples), points_of(samples)
    blocks = [
        f"{summary['experiment']}: {num_devices} devices, all {2**num_devices:,} subsets, {samples:,} test samples",
        as_text(failures_table(summary["accuracy_by_failures"], range(num_devices), samples)),
        _sample_line(summary),
        "\n".join(_law_lines(law, share)),
    ]
    if more := summary.get("replicated"):
        head = f"with {more['replicas']} devices of each student, {more['devices']} in all, exact:"
        if more["expected"] is not None:
            ends = show_interval(share)(more["expected_interval"])
            head += f" expected accuracy {share(more['expected'])} (95 %: {ends})"
        rows = failures_table(more["accuracy_by_failures"], range(more["devices"]), samples)
        blocks.append(f"{head}\n{as_text(rows)}")
    blocks.append(as_text(device_table(summary["devices"], samples, "under the law, points")))
    if num_devices > 1:
        blocks.append(_worst_pair(summary["pair_losses"], summary["pair_intervals"], share))
    if "one_more_device" in summary:
        blocks.append(_one_more(summary["one_more_device"], "one more device, failing like the others", point))
    if "placement" in summary:
        blocks.append(_placement_text(summary["placement"], share, point))
    if "per_class" in summary:
        blocks.append(_class_text(summary["per_class"], num_devices // 2))
    return "\n\n".join(filter(None, [*blocks, held(summary)]))


def _sample_line(summary: Mapping[str, Any]) -> str:
    """What one test sample is worth, and what intervals mean."""
    line = (
        f"one sample is {summary['points_per_sample']:.2g} points of accuracy; 95 %: confidence interval for new "
        "samples of the same kind"
    )
    if not summary["outcomes"]:
        line += " (the bundle lacks the outcomes of single samples: intervals come from counts and are too wide)"
    return line


def _law_lines(law: Mapping[str, Any], share: Callable[[float], str]) -> list[str]:
    lines = [
        f"failures {law['law']}: expected accuracy {share(law['expected'])} "
        f"(95 %: {show_interval(share)(law['expected_interval'])})"
    ]
    tail = "; ".join(
        f"{100 * q['share']:g} % of the time {share(q['accuracy'])} (95 %: {show_interval(share)(q['interval'])})"
        for q in law["quantiles"]
    )
    lines.append(f"accuracy that is undercut at most: {tail}")
    for kept in law["levels"]:
        line = (
            f"accuracy of at least {percent(kept['level'])}: {_of_time(kept['availability'])} of the time "
            f"(95 %: {show_interval(_of_time)(kept['interval'])})"
        )
        fall = kept["first_fall"]
        if fall is not None:
            line += f"; {_time(fall)}"
        lines.append(line)
    return lines


def _time(fall: Mapping[str, Any]) -> str:
    if fall["mean_s"] is None:
        return "never missed" + {"record": " in the record", "simulated": " in the simulation"}.get(fall["method"], "")
    text = f"first missed after {_duration(fall['mean_s'])}"
    if fall["method"] == "simulated":
        text += f" on average (95 %: {_duration(fall['low_s'])} to {_duration(fall['high_s'])})"
    text += " on average" if fall["method"] == "exact" and fall["mean_s"] else ""
    if "interval_s" in fall:
        low, high = ("never" if end is None else _duration(end) for end in fall["interval_s"])
        text += f" (for other test samples, 95 %: {low} to {high})"
    return text


def _of_time(value: float) -> str:
    """A share of time; as many digits as distinguish it from always and never."""
    return percent(value, 4) if min(value, 1 - value) < 0.01 else percent(value)


def _duration(seconds: float) -> str:
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds:.4g} s"


def _worst_pair(
    pairs: Sequence[Sequence[float]],
    intervals: Sequence[Sequence[Sequence[float]]],
    share: Callable[[float], str],
) -> str:
    value, i, j = min((pairs[i][j], i, j) for i in range(len(pairs)) for j in range(i))
    ends = show_interval(share)(intervals[i][j])
    return f"costliest pair: devices {j} and {i}, accuracy without both {share(value)} (95 %: {ends})"


def _one_more(more: Mapping[str, Any], title: str, point: Callable[[float], str]) -> str:
    best = "; ".join(
        f"student {r['student']} {point(r['gain'])} (95 %: {show_interval(point)(r['gain_interval'])})"
        for r in more["students"][:3]
    )
    line = f"{title}, gain in points by the student that it runs: {best or 'no student fits it'}"
    if more.get("gain_apart") is not None:
        line += f"; chosen on one half of the samples, the best gains {point(more['gain_apart'])} on the other"
    return line


def _placement_text(placement: Mapping[str, Any], share: Callable[[float], str], point: Callable[[float], str]) -> str:
    columns: tuple[Column, ...] = (
        TextColumn("machine", "device", str),
        Column("p_fail", "p_fail", lambda value: f"{value:g}"),
        Column("student", "student", str),
        Column("latency, ms", "latency_ms", lambda value: f"{value:.2f}"),
    )
    if any(row["joules"] is not None for row in placement["devices"]):
        columns += (Column("energy, mJ", "joules", lambda value: f"{1e3 * value:.3g}"),)
    kind = "best placement" if placement["exact"] else "best placement found by local search"
    ends = show_interval(share)(placement["interval"])
    head = f"{kind}: expected accuracy {share(placement['expected'])} (95 %: {ends}), {placement['latency_ms']:.2f} ms"
    if placement["apart"] is not None:
        ends = show_interval(share)(placement["apart_interval"])
        apart = f"{share(placement['apart'])} (95 %: {ends})"
        head += f"\nchosen on one half of the samples, a placement reaches {apart} on the other"
    more = placement["one_more"]
    return "\n".join(
        [head, as_text(Table(columns, placement["devices"])), _one_more(more, f"one more {more['like']}", point)]
    )


def _class_text(classes: Sequence[Mapping[str, Any]], failed: int) -> str:
    share = share_of(max(c["samples"] for c in classes))
    rows = [
        {
            "class": c["class"],
            "all": c["accuracy_by_failures"][0],
            "all_interval": c["intervals"][0],
            "half": c["accuracy_by_failures"][failed],
            "half_interval": c["intervals"][failed],
        }
        for c in classes
    ]
    # By the accuracy that is left: a class that is never right has nothing to lose, and suffers most.
    rows.sort(key=lambda row: (row["half"], row["half"] - row["all"]))
    columns = (
        TextColumn("class", "class", str),
        Column("all answer", "all", share),
        IntervalColumn("95 %", "all_interval", show_interval(share)),
        Column(f"{failed} failed", "half", share),
        IntervalColumn("95 %", "half_interval", show_interval(share)),
    )
    return f"classes with the lowest accuracy with {failed} failed:\n" + as_text(Table(columns, rows[:_WORST_CLASSES]))
