"""The estimates of ``nonn-sim enumerate --samples``, from subsets that it draws, as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from nonn.bundle import Bundle
from nonn.reliability.intervals import share_interval
from nonn.reliability.laws import Law
from nonn.report.table import Column, IntervalColumn, Table, as_text, percent, share_of, show_interval
from nonn_sim.described import Summary, heading
from nonn_sim.enumerate import Estimate, SampledLaw, Stratum

__all__ = ["sampled_summary", "sampled_text"]


def sampled_summary(bundle: Bundle, strata: Sequence[Stratum], law: Law, drawn: SampledLaw, seed: int) -> Summary:
    """The estimated results of a bundle; ``test_interval`` is for new samples, the others for the choice of subsets."""
    samples = len(bundle.features[1])

    def new(accuracy: float) -> tuple[float, float]:
        return share_interval(min(1.0, max(0.0, accuracy)), samples)

    return heading(bundle, "sampled", samples) | {
        "seed": seed,
        "devices": bundle.num_devices,
        "accuracy_by_failures": [
            {**asdict(s), "mean": s.mean.estimate, "mean_low": s.mean.low, "mean_high": s.mean.high}
            | {
                "test_interval": new(s.mean.estimate),
                "worst_interval": new(s.worst),
                "best_interval": new(s.best),
            }
            for s in strata
        ],
        "law": {
            "law": law.text,
            "draws": drawn.draws,
            "unseen": drawn.unseen,
            "expected_bound": list(drawn.bound),
            "expected": asdict(drawn.expected),
            "test_interval": new(drawn.expected.estimate),
            "levels": [{"level": level, "availability": asdict(e)} for level, e in drawn.availability.items()],
        },
    }


def sampled_text(summary: Summary) -> str:
    """A sampled summary for a terminal."""
    new = show_interval(share_of(summary["samples"]))
    columns = (
        Column("failed", "failed"),
        Column("sets", "subsets"),
        Column("sampled", "sampled"),
        Column("mean", "mean", percent),
        Column("95 % from", "mean_low", percent),
        Column("to", "mean_high", percent),
        IntervalColumn("new samples, 95 %", "test_interval", new),
        Column("worst found", "worst", percent),
        IntervalColumn("new samples, 95 %", "worst_interval", new),
        Column("best found", "best", percent),
        IntervalColumn("new samples, 95 %", "best_interval", new),
    )
    law = summary["law"]
    lines = [
        f"failures {law['law']}: expected accuracy {_interval(law['expected'])}; for new samples, 95 %: "
        f"{new(law['test_interval'])}"
    ]
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
