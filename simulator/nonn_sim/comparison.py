"""Comparison of simulation and measurement: calibration, and both sides of the table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.bundle.manifest import FEATURES
from nonn.client import Client
from nonn.errors import UnreachableError
from nonn.reliability.intervals import share_interval
from nonn.reliability.subsets import members
from nonn_sim.batches import quantile_interval
from nonn_sim.clients import MeasuredRequest, RequestSamples, SampleOrder
from nonn_sim.deployments import bundle_deployment
from nonn_sim.engine import Engine
from nonn_sim.faults import FaultEvent
from nonn_sim.metrics import percentiles, summary
from nonn_sim.scenario import Scenario
from nonn_sim.trace import RequestTrace

__all__ = [
    "calibrate",
    "difference",
    "measured_figures",
    "simulated_figures",
    "total_variation",
]

SIMULATED_SEEDS = 15
# Largest differences between simulation and measurement that count as agreement. The total variation is that beyond
# what runs of the simulation differ by among themselves.
ACCURACY_POINTS, P99_SHARE, VARIATION = 0.5, 0.15, 0.05
MOST_DRIFT = 1.5  # a larger ratio means that the machine changed during the run
WIDEST = 0.5  # an interval of the measured p99 wider than this share of it is inconclusive
_LATENCIES = ("p50", "p95", "p99", "max")


def calibrate(warm: Sequence[MeasuredRequest], client: Client, deadline_s: float) -> NDArray[np.float64]:
    """Times of whole fan-outs, and the remaining time of requests [R, 2].

    A client measures only the sum. The share of the fan-out is known on average, from the node latencies that the
    aggregator reports, and every request is split in the same ratio. A fan-out that every node answered took less than
    the deadline.

    Raises:
        UnreachableError: no request was answered by every node.
    """
    nodes = client.metadata().nodes
    total_s = np.array([row.latency_s for row in warm if row.mask.bit_count() == len(nodes)])
    if not len(total_s):
        raise UnreachableError(f"no request of the warm-up was answered by all nodes within {deadline_s:g} s")
    share = min(1.0, max(node["latency_s"] for node in nodes) / float(np.median(total_s)))
    fanout_s = np.minimum(share * total_s, deadline_s)
    return np.stack([fanout_s, total_s - fanout_s], axis=1)


def simulated_figures(
    scenario: Scenario,
    bundle: Bundle,
    events: Sequence[FaultEvent],
    measured_s: NDArray[np.float64],
    samples: RequestSamples,
) -> dict[str, Any]:
    """The median of each figure over several runs with the same arrivals and faults.

    The time at which a probe finds a recovered node is random, and a second of it is a tenth of a point in half a
    minute.

    Args:
        scenario: the scenario.
        bundle: the artifact.
        events: faults of the devices.
        measured_s: see ``calibrate``.
        samples: samples of the requests.

    Returns:
        The figures. ``accuracy_of_sets`` is the table's accuracy of the subsets that answer. ``accuracy`` is the same,
        unless the bundle has recorded features of the samples: then it is measured on the samples of each request, so
        that sampling error does not appear as an error of the simulator. ``sets`` is the share of requests that
        each subset answered, mask → share, mask 0 for no answer: the mean of the runs; ``sets_spread`` is the largest
        total variation between one run and the mean of the others. ``test_interval`` is the 95 % interval of
        ``accuracy_of_sets`` for new test samples.
    """
    deployment = bundle_deployment(bundle, scenario.load.batch)
    n, seed = bundle.num_devices, scenario.scenario.seed
    recorded = scenario.load.arrivals != "closed" and _are_recorded(samples, bundle)
    runs = []
    for number in range(SIMULATED_SEEDS):
        engine = Engine(scenario, n, deployment, seed + number, events, measured_s, arrivals_seed=seed)
        trace = engine.run()
        run = summary(trace, deployment, scenario, n)
        run["accuracy_of_sets"] = run["accuracy"]
        if recorded:
            run["accuracy"] = _accuracy_on_samples(trace, scenario, bundle)
        run["sets"] = _shares(np.where(trace.answered, trace.mask, 0).tolist())
        runs.append(run)

    def median(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    names = ("requests", "answers", "lost", "availability", "accuracy", "accuracy_of_sets", "degraded", "deadline_hits")
    figures: dict[str, Any] = {name: median([run[name] for run in runs]) for name in names}
    figures["latency_s"] = {key: median([run["latency_s"][key] for run in runs]) for key in _LATENCIES}
    sets = [run["sets"] for run in runs]
    spread = max(total_variation(one, _mean_shares([s for s in sets if s is not one])) for one in sets)
    figures["test_interval"] = _for_new_samples(figures["accuracy_of_sets"], bundle)
    return {**figures, "sets": _mean_shares(sets), "sets_spread": spread}


def _for_new_samples(accuracy: float | None, bundle: Bundle) -> tuple[float, float] | None:
    """The 95 % interval of an accuracy in the table of a bundle, which is of a finite test set."""
    return None if accuracy is None else share_interval(accuracy, bundle.accuracies.samples)


def _shares(masks: Sequence[int]) -> dict[int, float]:
    """Share of each mask, ascending."""
    return {mask: count / len(masks) for mask, count in sorted(Counter(masks).items())}


def _mean_shares(runs: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {
        mask: sum(run.get(mask, 0.0) for run in runs) / len(runs) for mask in sorted({m for run in runs for m in run})
    }


def total_variation(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Total variation distance of two distributions over subsets: the share of requests that would have to change."""
    return sum(abs(one.get(mask, 0.0) - other.get(mask, 0.0)) for mask in {*one, *other}) / 2


def _are_recorded(samples: RequestSamples, bundle: Bundle) -> bool:
    """Whether the samples have the labels of the bundle's recorded features."""
    if samples.labels is None or FEATURES not in bundle.manifest.files:
        return False
    return np.array_equal(samples.labels, bundle.features[1])


def _accuracy_on_samples(trace: RequestTrace, scenario: Scenario, bundle: Bundle) -> float | None:
    """Accuracy of answers on the samples of the requests, each fused offline from the subset that answered."""
    features, labels = bundle.features
    order, right, shares = SampleOrder(scenario, len(labels)), dict[int, NDArray[np.bool_]](), []
    for number, row in enumerate(np.argsort(trace.asked_at_s, kind="stable").tolist()):
        mask = trace.sets[trace.which[row]]
        if trace.answered[row]:
            if mask not in right:
                logits = bundle.head.logits({i: features[i] for i in members(mask)})
                right[mask] = logits.astype(np.float32).argmax(axis=1) == labels
            shares.append(float(right[mask][order.of(number)].mean()))
    return float(np.mean(shares)) if shares else None


def measured_figures(measured: Sequence[MeasuredRequest], bundle: Bundle, labelled: bool) -> dict[str, Any]:
    """The measured side of the table.

    ``accuracy_of_sets`` is the accuracy of the subsets that answered in the bundle's table, without sampling error.
    ``accuracy`` is measured on the samples themselves, with its standard error; ``accuracy_interval`` takes no more
    samples as independent than the test set has. ``sets`` and ``test_interval`` as in ``simulated_figures``.
    """
    answers = [row for row in measured if row.mask]
    accuracy_of, full = bundle.accuracies.lookup(), (1 << bundle.num_devices) - 1
    samples = sum(row.samples for row in answers)
    accuracy = sum(row.correct for row in answers) / samples if labelled and samples else None
    latency_s = np.array([row.latency_s for row in answers])
    of_sets = float(np.mean([accuracy_of[row.mask] for row in answers])) if answers else None
    distinct = min(samples, bundle.accuracies.samples)
    return {
        "requests": len(measured),
        "answers": len(answers),
        "lost": len(measured) - len(answers),
        "availability": len(answers) / len(measured) if measured else None,
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / samples) if accuracy is not None else None,
        "accuracy_interval": share_interval(accuracy, distinct) if accuracy is not None else None,
        "accuracy_of_sets": of_sets,
        "test_interval": _for_new_samples(of_sets, bundle),
        "degraded": float(np.mean([row.mask != full for row in answers])) if answers else None,
        "latency_s": percentiles(latency_s),
        "p99_interval_s": quantile_interval(latency_s, 0.99),
        "sets": _shares([row.mask for row in measured]) if measured else {},
    }


def difference(
    simulated: dict[str, Any], measured: dict[str, Any], drift: float | None, conclusive: bool = True
) -> dict[str, Any]:
    """Difference between simulation and measurement, and whether they agree.

    Args:
        simulated: see ``simulated_figures``.
        measured: see ``measured_figures``.
        drift: ratio of the median latency without a fault after the run to that before it; None if unknown.
        conclusive: whether every fault of the scenario happened.

    Returns:
        ``accuracy_points``, ``sets_points``; ``sets_variation``, total variation between the distributions of answering
        subsets, and ``sets_beyond``, by how much it exceeds that between runs of the simulation; ``p99_share``,
        simulated over measured less 1; ``p99_beyond``, the share by which the simulated p99 is outside the 95 %
        interval of the measured one, 0 inside; ``conclusive``, whether the interval is narrow enough and the machine
        did not change; ``within``, conclusive and all within the limits.
    """
    found = measured["accuracy"] if measured["accuracy"] is not None else measured["accuracy_of_sets"]
    p99, real, interval = simulated["latency_s"]["p99"], measured["latency_s"]["p99"], measured["p99_interval_s"]
    if found is None or simulated["accuracy"] is None:
        keys = ("accuracy_points", "sets_points", "sets_variation", "sets_beyond", "p99_share", "p99_beyond")
        nothing = dict.fromkeys(keys)
        return {**nothing, "conclusive": False, "within": False}
    points = 100 * (simulated["accuracy"] - found)
    variation = total_variation(simulated["sets"], measured["sets"])
    odd_sets = max(0.0, variation - simulated["sets_spread"])
    beyond = None
    if interval is None or drift is None:
        conclusive = False
    else:
        low, high = interval
        beyond = min(0.0, p99 / low - 1) + max(0.0, p99 / high - 1)
        conclusive &= high - low <= WIDEST * real and 1 / MOST_DRIFT <= drift <= MOST_DRIFT
    agrees = abs(points) <= ACCURACY_POINTS and odd_sets <= VARIATION
    return {
        "accuracy_points": points,
        "sets_points": 100 * (simulated["accuracy_of_sets"] - measured["accuracy_of_sets"]),
        "sets_variation": variation,
        "sets_beyond": odd_sets,
        "p99_share": p99 / real - 1,
        "p99_beyond": beyond,
        "conclusive": conclusive,
        "within": agrees and conclusive and beyond is not None and abs(beyond) <= P99_SHARE,
    }
