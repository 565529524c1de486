"""Intervals for the results of ``nonn-sim enumerate``: what the finite test set says about each figure.

Every interval has a confidence of 95 % (``nonn.reliability.evidence``). Shares of time, quantiles and times come from
resampled test sets and are approximate. The time until a level is first missed is computed for the resampled test set
at the lower end of its share of time, since subsets that are good less often are left sooner, and for the upper ends
of all accuracies.

The best student for one more device and the best placement are chosen on the samples that measure them. ``apart`` is
the accuracy that such a choice reaches on samples that it was not made on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.reliability.confidence import CONFIDENCE
from nonn.reliability.evidence import Evidence, shapley_weights, value_weights
from nonn.reliability.intervals import share_interval
from nonn.reliability.laws import Law, TimedLaw, availability, distribution
from nonn.reliability.laws.outcome import meets
from nonn.reliability.laws.requests import Independent
from nonn.reliability.placement import Machine, expected_accuracy, place, price_of_one_more, works_of
from nonn.reliability.replicas import replica_weights
from nonn.reliability.subsets import ROUNDING, probabilities
from nonn.reliability.table import SubsetTable

__all__ = ["add_intervals", "add_placement_intervals", "add_replica_intervals"]

FloatArray = NDArray[np.float64]

_TAIL = (1 - CONFIDENCE) / 2


def add_intervals(summary: dict[str, Any], evidence: Evidence, law: Law) -> None:
    """Adds intervals to an exact summary.

    Args:
        summary: of ``nonn_sim.summary.exact_summary``; changed in place.
        evidence: accuracy of all subsets, and what the test set says about it.
        law: failure law of the summary.
    """
    table, probability = evidence.table, law.probabilities()
    summary["outcomes"] = 0 if evidence.outcomes is None else evidence.outcomes.kept
    summary["accuracy_by_failures"] = evidence.by_failures()
    under = summary["law"]
    under["expected_interval"] = evidence.mean(probability[None])[0]
    shares = [row["share"] for row in under["quantiles"]]
    levels = [row["level"] for row in under["levels"]]

    def figures(accuracy: FloatArray) -> FloatArray:
        """Quantiles of accuracy, then the availability of each level."""
        values, weight = distribution(accuracy, probability)
        places = np.searchsorted(weight.cumsum(), np.array(shares) * (1 + ROUNDING), side="right")
        reached = [availability(accuracy, probability, level) for level in levels]
        return np.array([*values[places.clip(max=len(values) - 1)], *reached])

    found = evidence.of(figures)
    for row, interval in zip(under["quantiles"], found, strict=False):
        row["interval"] = interval
    for row, interval in zip(under["levels"], found[len(shares) :], strict=True):
        row["interval"] = interval
        if isinstance(law, TimedLaw):
            row["first_fall"]["interval_s"] = _times(evidence, law, row["level"])
    devices, full = range(table.num_devices), table.full
    summary["pair_intervals"] = [[evidence.accuracy(full & ~(1 << i | 1 << j)) for j in devices] for i in devices]
    alone = [evidence.accuracy(1 << i) for i in devices]
    shapley = evidence.difference(*shapley_weights(table.num_devices))
    marginal = evidence.difference(*value_weights(probability))
    for row, *intervals in zip(summary["devices"], alone, shapley, marginal, strict=True):
        keys = ("accuracy_alone_interval", "shapley_interval", "marginal_interval")
        row |= dict(zip(keys, intervals, strict=True))
    if "one_more_device" in summary:
        assert isinstance(law, Independent)
        more = summary["one_more_device"]
        machine = Machine(name="replica", p_fail=more["p_fail"])
        _add_gains(
            more, evidence, 1 - law.p, machine, lambda now: price_of_one_more(now, 1 - law.p, machine)[0].student
        )


def add_replica_intervals(replicated: dict[str, Any], evidence: Evidence, law: Law) -> None:
    """Adds intervals to the results for several devices of each student.

    Args:
        replicated: of ``nonn_sim.summary.replicated``; changed in place.
        evidence: accuracy of all subsets of students, and what the test set says about it.
        law: failure law of the students.
    """
    samples = evidence.table.samples
    weights = replica_weights(evidence.table.num_devices, replicated["replicas"])
    replicated["accuracy_by_failures"] = tuple(
        replace(
            row,
            interval=evidence.mean(of_row[None])[0],
            worst_interval=share_interval(row.worst, samples),
            best_interval=share_interval(row.best, samples),
        )
        for row, of_row in zip(replicated["accuracy_by_failures"], weights, strict=True)
    )
    if isinstance(law, Independent):
        p_fail = law.p ** replicated["replicas"]
        replicated["expected_interval"] = evidence.mean(probabilities(p_fail)[None])[0]


def add_placement_intervals(
    placement: dict[str, Any], bundle: Bundle, evidence: Evidence, machines: Sequence[Machine], latency_limit_s: float
) -> None:
    """Adds intervals to a placement, and what a placement reaches on samples that it was not chosen on.

    Args:
        placement: of ``nonn_sim.placement_file.placement_summary``; changed in place.
        bundle: its bundle.
        evidence: accuracy of all subsets, and what the test set says about it.
        machines: the machines.
        latency_limit_s: every machine in use must answer within it.
    """
    works = works_of(bundle.manifest.students)

    def p_up(students: Sequence[int | None]) -> FloatArray:
        down = np.ones(evidence.table.num_devices)
        for machine, student in zip(machines, students, strict=True):
            if student is not None:
                down[student] *= machine.p_fail
        return 1 - down

    chosen = p_up([row["student"] for row in placement["devices"]])
    placement["interval"] = evidence.mean(probabilities(1 - chosen)[None])[0]
    placement["apart"] = evidence.apart(
        lambda table: p_up(place(table, works, machines, latency_limit_s=latency_limit_s).students),
        expected_accuracy,
        splits=1,  # a placement may take seconds
    )
    placement["apart_interval"] = evidence.apart_interval(placement["apart"])
    spare = min(machines, key=lambda machine: machine.p_fail)

    def best(table: SubsetTable) -> int:
        rows = price_of_one_more(table, chosen, spare, works, latency_limit_s)
        return rows[0].student if rows else -1

    _add_gains(placement["one_more"], evidence, chosen, spare, best)


def _add_gains(more: dict[str, Any], evidence: Evidence, p_up: FloatArray, machine: Machine, best: Any) -> None:
    """Intervals of the gain of one more device by its student, and the gain of a student that was chosen apart."""
    rows = more["students"]
    if not rows:
        return

    def with_it(student: int) -> FloatArray:
        following = p_up.copy()
        following[student] = 1 - (1 - p_up[student]) * machine.p_fail
        return following

    plus = np.stack([probabilities(1 - with_it(row["student"])) for row in rows])
    intervals = evidence.difference(plus, np.broadcast_to(probabilities(1 - p_up), plus.shape))
    for row, interval in zip(rows, intervals, strict=True):
        row["gain_interval"] = interval
    more["gain_apart"] = evidence.apart(
        best, lambda table, student: expected_accuracy(table, with_it(student)) - expected_accuracy(table, p_up)
    )


def _times(evidence: Evidence, law: TimedLaw, level: float) -> tuple[float | None, float | None]:
    """Times to the first miss of a level at the lower and the upper end of its share of time."""
    probability = law.probabilities()
    shares = np.array([availability(drawn, probability, level) for drawn in evidence.draws])
    least = evidence.draws[shares.argsort(kind="stable")[round(_TAIL * (len(shares) - 1))]]
    ends = (np.minimum(least, evidence.table.accuracy), evidence.upper())
    low, high = (law.first_passage(meets(end, level)).mean_s for end in ends)
    return (low if np.isfinite(low) else None), (high if np.isfinite(high) else None)
