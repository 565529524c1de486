"""What a bundle of more than 16 devices knows: its stored sample of the subsets, under a failure law.

Nothing is fused. Figures that the sample proves are exact (subsets with few failures, bounds under a law); the others
have intervals for the choice of the subsets and the test set (``nonn.reliability.sampled_evidence``). A law of which
the bundle has no draws has its bounds only; ``nonn-sim enumerate --samples`` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nonn.bundle import Bundle
from nonn.reliability.guarantees import Verdict
from nonn.reliability.laws import Law
from nonn.reliability.laws.outcome import meets
from nonn.reliability.laws.requests import Independent
from nonn.reliability.sampled_evidence import SampledEvidence
from nonn.report.overview import failures_table
from nonn.report.table import as_text, percent, share_of, show_interval
from nonn_sim.described import Summary, device_table, heading, held

__all__ = ["stored_summary", "stored_text"]


def stored_summary(
    bundle: Bundle, evidence: SampledEvidence, law: Law, levels: Sequence[float], verdicts: Sequence[Verdict]
) -> Summary:
    """The results of a bundle from its stored sample.

    Args:
        bundle: the bundle.
        evidence: its sample of the subsets.
        law: failure law.
        levels: accuracies whose availability is computed.
        verdicts: verdicts on promises.
    """
    table = evidence.table
    summary = heading(bundle, "stored", table.samples) | {
        "outcomes": 0 if evidence.outcomes is None else evidence.outcomes.kept,
        "subsets": len(table.correct),
        "counted_failed": table.counted,
        "accuracy_by_failures": evidence.by_failures(),
        "law": _under(evidence, law, levels),
        "devices": _devices(bundle, evidence, law),
    }
    if verdicts:
        summary["guarantees"] = [asdict(verdict) for verdict in verdicts]
    return summary


def _under(evidence: SampledEvidence, law: Law, levels: Sequence[float]) -> Summary:
    """Figures under a failure law; None where the bundle has no draws of it."""
    _, unseen, draws = evidence.table.law_weights(law)
    expected = evidence.expected(law) if evidence.is_drawn(law) else None
    return {
        "law": law.text,
        "draws": len(draws),
        "unseen": unseen,
        "expected": None if expected is None else expected.value,
        "expected_interval": None if expected is None else list(expected.interval),
        "expected_bound": list(evidence.bound(law, evidence.table.accuracy)),
        "levels": [_level(evidence, law, level) for level in levels],
    }


def _level(evidence: SampledEvidence, law: Law, level: float) -> Summary:
    """The share of time in which accuracy reaches a level: its bound, and its estimate if the law was drawn."""
    accuracy = evidence.table.accuracy
    bound = evidence.bound(law, meets(accuracy, level).astype(np.float64), float(level <= 0))
    row: Summary = {"level": level, "availability": None, "interval": None, "bound": list(bound)}
    if evidence.is_drawn(law):
        weights = evidence.weights(law)
        share = np.array([float(weights @ meets(accuracy, level))]).clip(*bound)
        ends = np.array(evidence.of(lambda drawn: np.array([weights @ meets(drawn, level)])))
        evidence.widen_shares(law, np.array([level]), share, ends)
        row |= {"availability": float(share[0]), "interval": ends[0].tolist()}
    return row


def _devices(bundle: Bundle, evidence: SampledEvidence, law: Law) -> list[Summary]:
    """What each device contributes; under the law only where devices fail independently."""
    table, (shapley, shapley_ends) = evidence.table, evidence.shapley()
    alone = [table.stated(1 << i) for i in range(table.num_devices)]
    rows: list[Summary] = [
        {
            "device": i,
            "part": bundle.manifest.students[i].part,
            "accuracy_alone": alone[i].accuracy,
            "accuracy_alone_interval": alone[i].interval,
            "shapley": float(shapley[i]),
            "shapley_interval": shapley_ends[i],
        }
        for i in range(table.num_devices)
    ]
    if isinstance(law, Independent):
        marginal, ends = evidence.importance(law.p)
        for row, value, interval in zip(rows, marginal.tolist(), ends, strict=True):
            row |= {"marginal": value, "marginal_interval": interval}
    return rows


def stored_text(summary: Summary) -> str:
    """A stored summary for a terminal."""
    devices, samples = summary["devices"], summary["samples"]
    others = f"with under {summary['counted_failed']} others failed, points"
    blocks = [
        f"{summary['experiment']}: {len(devices)} devices, {summary['subsets']:,} stored subsets, {samples:,} test "
        f"samples; all subsets with up to {summary['counted_failed']} failed devices, a sample of the others with the "
        "worst that a search found",
        as_text(failures_table(summary["accuracy_by_failures"], range(len(devices)), samples)),
        "\n".join(_law_lines(summary["law"], samples)),
        as_text(device_table(devices, samples, others)),
        held(summary),
    ]
    return "\n\n".join(filter(None, blocks))


def _law_lines(law: Mapping[str, Any], samples: int) -> list[str]:
    share = share_of(samples)
    bound = f"whatever the subsets that were not counted reach: {show_interval(percent)(law['expected_bound'])}"
    if law["expected"] is None:
        lines = [
            f"failures {law['law']}: expected accuracy, {bound}; the bundle has no draws of this law: --samples 64 "
            "draws it"
        ]
    else:
        ends = show_interval(share)(law["expected_interval"])
        lines = [f"failures {law['law']}: expected accuracy {share(law['expected'])} (95 %: {ends}); {bound}"]
    for row in law["levels"]:
        least, most = map(percent, row["bound"])
        line = f"accuracy of at least {percent(row['level'])}: {least} to {most} of the time"
        if row["availability"] is not None:
            ends = show_interval(percent)(row["interval"])
            line = f"accuracy of at least {percent(row['level'])}: {percent(row['availability'])} of the time "
            line += f"(95 %: {ends}); for certain {least} to {most}"
        lines.append(line)
    return lines
