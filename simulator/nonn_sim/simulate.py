"""Simulates a scenario with a bundle: the figures of every deployment and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nonn.bundle import Bundle
from nonn.jobs import map_jobs
from nonn.reliability.intervals import share_interval
from nonn_sim.alternatives import alternatives
from nonn_sim.deployments import Deployment, bundle_deployment
from nonn_sim.engine import Engine
from nonn_sim.faults import FaultEvent
from nonn_sim.metrics import summary
from nonn_sim.scenario import Scenario
from nonn_sim.trace import RequestTrace

__all__ = ["simulate", "simulate_many", "simulate_once"]

FEW = 20_000  # requests of all runs; to start processes takes as long as to simulate them
# Averaged over seeds; the other figures are those of the first seed.
_AVERAGED = (
    "accuracy",
    "accuracy_per_request",
    "availability",
    "degraded",
    "lost",
    "deadline_hits",
    "energy_j_per_answer",
    "bytes_per_answer",
)


@dataclass(frozen=True)
class _Job:
    """One run."""

    scenario: Scenario
    num_devices: int
    deployment: Deployment
    seed: int


def simulate_once(
    scenario: Scenario, bundle: Bundle, events: Sequence[FaultEvent] | None = None
) -> tuple[dict[str, Any], RequestTrace]:
    """Simulates the bundle in one world, from the scenario's seed.

    Args:
        scenario: the scenario.
        bundle: the artifact.
        events: recorded faults instead of the scenario's.

    Returns:
        The figures and the trace.

    Raises:
        ConfigError: scenario or log and bundle do not fit each other.
    """
    deployment = bundle_deployment(bundle, scenario.load.batch, scenario.fleet.replicas)
    trace = Engine(scenario, bundle.num_devices, deployment, scenario.scenario.seed, events).run()
    return _for_new_samples(summary(trace, deployment, scenario, bundle.num_devices), bundle), trace


def simulate(
    scenario: Scenario, bundle: Bundle, *, seeds: int = 1, backend: str = "local", compare: bool = True
) -> dict[str, Any]:
    """Simulates the bundle and its alternatives in one world, or in several that differ by their seed.

    Args:
        scenario: the scenario.
        bundle: the artifact.
        seeds: number of seeds, from the scenario's own upwards.
        backend: backend that computes the runs.
        compare: add rows for the alternatives.

    Returns:
        ``rows``, the bundle's first, each with the figures of the first seed and, for several seeds, ``over_seeds``:
        mean and standard deviation of each figure; ``not_compared``, why alternatives are missing; ``scenario``,
        ``bundle`` and ``seeds``.

    Raises:
        ConfigError: scenario and bundle do not fit each other, or the backend is unknown.
        MissingExtraError: the backend needs an extra.
    """
    nodes = scenario.devices(bundle.num_devices)
    replicas = scenario.fleet.replicas
    deployments, missing = [bundle_deployment(bundle, scenario.load.batch, replicas)], list[str]()
    if replicas > 1:
        missing = [f"alternatives: they are placed on {bundle.num_devices} devices, not on {len(nodes)}"]
    elif compare:
        others, missing = alternatives(bundle, nodes, scenario.load.batch)
        deployments += others
    rows = _rows([(scenario, deployment) for deployment in deployments], bundle, seeds, backend)
    return {
        "schema": 1,
        "scenario": scenario.scenario.name,
        "bundle": bundle.hash,
        "seeds": [scenario.scenario.seed + k for k in range(seeds)],
        "rows": rows,
        "not_compared": missing,
    }


def simulate_many(
    scenarios: Sequence[Scenario], bundle: Bundle, *, seeds: int = 1, backend: str = "local"
) -> list[dict[str, Any]]:
    """Simulates the bundle in several scenarios.

    Args:
        scenarios: the scenarios.
        bundle: the artifact.
        seeds: seeds of each scenario, from its own upwards.
        backend: backend that computes the runs.

    Returns:
        The figures of each scenario, as a row of ``simulate``.

    Raises:
        ConfigError: a scenario and the bundle do not fit each other, or the backend is unknown.
        MissingExtraError: the backend needs an extra.
    """
    for scenario in scenarios:
        scenario.devices(bundle.num_devices)
    pairs = [(s, bundle_deployment(bundle, s.load.batch, s.fleet.replicas)) for s in scenarios]
    return _rows(pairs, bundle, seeds, backend)


def _rows(
    pairs: Sequence[tuple[Scenario, Deployment]], bundle: Bundle, seeds: int, backend: str
) -> list[dict[str, Any]]:
    """Figures of each deployment in its scenario, over several seeds."""
    jobs = [
        _Job(scenario, bundle.num_devices, deployment, scenario.scenario.seed + k)
        for scenario, deployment in pairs
        for k in range(seeds)
    ]
    few = sum(_requests(job.scenario) for job in jobs) < FEW
    outcomes = map_jobs(_run, jobs, backend, workers=1 if few else 0)
    rows = []
    for start in range(0, len(outcomes), seeds):
        mine = outcomes[start : start + seeds]
        row = {**mine[0], **({"over_seeds": _over_seeds(mine)} if seeds > 1 else {})}
        rows.append(_for_new_samples(row, bundle))
    return rows


def _requests(scenario: Scenario) -> float:
    """Number of requests of a run, about; infinite where the answers decide it."""
    run, load = scenario.scenario, scenario.load
    return run.requests or (np.inf if load.arrivals == "closed" else run.duration_s * load.rate_per_s)


def _for_new_samples(row: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    """A row with the 95 % intervals of its accuracies: every subset's accuracy is of a finite test set."""
    for part in (row, *row["windows"]):
        if part["accuracy"] is not None:
            part["test_interval"] = share_interval(part["accuracy"], bundle.accuracies.samples)
    return row


def _run(job: _Job) -> dict[str, Any]:
    """Runs one job, in any process."""
    trace = Engine(job.scenario, job.num_devices, job.deployment, job.seed).run()
    return summary(trace, job.deployment, job.scenario, job.num_devices)


def _over_seeds(outcomes: Sequence[dict[str, Any]]) -> dict[str, dict[str, float] | None]:
    """Mean and standard deviation of each figure; None if a run has no such figure."""
    figures = {name: [outcome[name] for outcome in outcomes] for name in _AVERAGED}
    figures |= {f"latency_{p}_s": [outcome["latency_s"][p] for outcome in outcomes] for p in ("p50", "p95", "p99")}
    return {
        name: None
        if any(value is None for value in values)
        else {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}
        for name, values in figures.items()
    }
