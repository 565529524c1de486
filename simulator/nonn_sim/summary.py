"""The results of ``nonn-sim enumerate`` as JSON, and as text with the same contents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.reliability.guarantees import Verdict
from nonn.reliability.laws import FirstPassage, Law, assess
from nonn.reliability.laws.requests import Independent
from nonn.reliability.marginal import marginal_values, pair_losses, shapley_values
from nonn.reliability.placement import Machine, price_of_one_more
from nonn.reliability.subsets import SubsetTable, membership
from nonn.report.table import Column, Table, TextColumn, as_text, failures_table, percent, points
from nonn_sim.enumerate import Estimate, SampledLaw, Stratum

__all__ = ["exact_summary", "exact_text", "sampled_summary", "sampled_text"]

Summary = dict[str, Any]
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
    summary: Summary = {
        "schema": 1,
        "experiment": bundle.manifest.experiment,
        "bundle": f"sha256:{bundle.hash}",
        "method": "exact",
        "samples": table.samples,
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
    """Mean accuracy of every class for each number of failures; classes without samples are left out."""
    counts = np.bincount(bundle.features[1], minlength=by_class.shape[1])
    answering = membership(table.num_devices).sum(axis=1)
    means = np.array([by_class[answering == table.num_devices - f].mean(axis=0) for f in range(table.num_devices)])
    return [
        {
            "class": bundle.manifest.classes[k] if k < len(bundle.manifest.classes) else str(k),
            "samples": int(counts[k]),
            "accuracy_by_failures": (means[:, k] / counts[k]).tolist(),
        }
        for k in np.flatnonzero(counts[: by_class.shape[1]])
    ]


def exact_text(summary: Summary) -> str:
    """An exact summary for a terminal."""
    num_devices, law = len(summary["devices"]), summary["law"]
    blocks = [
        f"{summary['experiment']}: {num_devices} devices, all {2**num_devices:,} subsets, "
        f"{summary['samples']:,} test samples",
        as_text(failures_table(summary["accuracy_by_failures"], range(num_devices))),
        "\n".join(_law_lines(law)),
    ]
    by_device = (
        Column("device", "device"),
        Column("part", "part"),
        Column("accuracy alone", "accuracy_alone", percent),
        Column("Shapley, points", "shapley", points),
        Column("under the law, points", "marginal", points),
    )
    blocks.append(as_text(Table(by_device, summary["devices"])))
    if num_devices > 1:
        blocks.append(_worst_pair(summary["pair_losses"]))
    if "one_more_device" in summary:
        blocks.append(_one_more(summary["one_more_device"]["students"], "one more device, failing like the others"))
    if "placement" in summary:
        blocks.append(_placement_text(summary["placement"]))
    if "per_class" in summary:
        blocks.append(_class_text(summary["per_class"], num_devices // 2))
    # A broken promise ends the command with an error.
    if held := [f"guarantee {Verdict(**v)}" for v in summary.get("guarantees", ()) if v["holds"]]:
        blocks.append("\n".join(held))
    return "\n\n".join(blocks)


def _law_lines(law: Mapping[str, Any]) -> list[str]:
    lines = [f"failures {law['law']}: expected accuracy {percent(law['expected'])}"]
    tail = ", ".join(f"{percent(q['accuracy'])} ({100 * q['share']:g} %)" for q in law["quantiles"])
    lines.append(f"accuracy that is undercut at most this often: {tail}")
    for kept in law["levels"]:
        line = f"accuracy of at least {percent(kept['level'])}: {percent(kept['availability'], 4)} of the time"
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
    return text + (" on average" if fall["method"] == "exact" and fall["mean_s"] else "")


def _duration(seconds: float) -> str:
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds:.4g} s"


def _worst_pair(pairs: Sequence[Sequence[float]]) -> str:
    value, i, j = min((pairs[i][j], i, j) for i in range(len(pairs)) for j in range(i))
    return f"costliest pair: devices {j} and {i}, accuracy without both {percent(value)}"


def _one_more(students: Sequence[Mapping[str, Any]], title: str) -> str:
    best = "; ".join(f"student {r['student']} {100 * r['gain']:+.2f}" for r in students[:3])
    return f"{title}, gain in points by the student that it runs: {best or 'no student fits it'}"


def _placement_text(placement: Mapping[str, Any]) -> str:
    columns = (
        TextColumn("machine", "device", str),
        Column("p_fail", "p_fail", lambda value: f"{value:g}"),
        Column("student", "student", str),
        Column("latency, ms", "latency_ms", lambda value: f"{value:.2f}"),
    )
    kind = "best placement" if placement["exact"] else "best placement found by local search"
    head = f"{kind}: expected accuracy {percent(placement['expected'])}, {placement['latency_ms']:.2f} ms"
    more = placement["one_more"]
    return "\n".join(
        [head, as_text(Table(columns, placement["devices"])), _one_more(more["students"], f"one more {more['like']}")]
    )


def _class_text(classes: Sequence[Mapping[str, Any]], failed: int) -> str:
    rows = [
        {"class": c["class"], "all": c["accuracy_by_failures"][0], "half": c["accuracy_by_failures"][failed]}
        for c in classes
    ]
    # By the accuracy that is left: a class that is never right has nothing to lose, and suffers most.
    rows.sort(key=lambda row: (row["half"], row["half"] - row["all"]))
    columns = (
        TextColumn("class", "class", str),
        Column("all answer", "all", percent),
        Column(f"{failed} failed", "half", percent),
    )
    return f"classes with the lowest accuracy with {failed} failed:\n" + as_text(Table(columns, rows[:_WORST_CLASSES]))


def sampled_summary(bundle: Bundle, strata: Sequence[Stratum], law: Law, drawn: SampledLaw, seed: int) -> Summary:
    """The estimated results of a bundle."""
    return {
        "schema": 1,
        "experiment": bundle.manifest.experiment,
        "bundle": f"sha256:{bundle.hash}",
        "method": "sampled",
        "seed": seed,
        "samples": len(bundle.features[1]),
        "devices": bundle.num_devices,
        "accuracy_by_failures": [
            {**asdict(s), "mean": s.mean.estimate, "mean_low": s.mean.low, "mean_high": s.mean.high} for s in strata
        ],
        "law": {
            "law": law.text,
            "draws": drawn.draws,
            "unseen": drawn.unseen,
            "expected_bound": list(drawn.bound),
            "expected": asdict(drawn.expected),
            "levels": [{"level": level, "availability": asdict(e)} for level, e in drawn.availability.items()],
        },
    }


def sampled_text(summary: Summary) -> str:
    """A sampled summary for a terminal."""
    columns = (
        Column("failed", "failed"),
        Column("sets", "subsets"),
        Column("sampled", "sampled"),
        Column("mean", "mean", percent),
        Column("95 % from", "mean_low", percent),
        Column("to", "mean_high", percent),
        Column("worst seen", "worst", percent),
        Column("best seen", "best", percent),
    )
    law = summary["law"]
    lines = [f"failures {law['law']}: expected accuracy {_interval(law['expected'])}"]
    low, high = law["expected_bound"]
    lines.append(
        f"probability of the subsets not fused: {law['unseen']:.3g}, with {law['draws']:,} draws among them; whatever "
        f"their accuracy, the expected one is {percent(low)} to {percent(high)}"
    )
    lines += [
        f"accuracy of at least {percent(kept['level'])}: {_interval(kept['availability'])} of the time"
        for kept in law["levels"]
    ]
    head = f"{summary['experiment']}: {summary['devices']} devices, subsets sampled with seed {summary['seed']}"
    return "\n\n".join([head, as_text(Table(columns, summary["accuracy_by_failures"])), "\n".join(lines)])


def _interval(values: Mapping[str, float]) -> str:
    estimate = Estimate(**values)
    return f"{percent(estimate.estimate)} (95 %: {percent(estimate.low)} to {percent(estimate.high)})"
