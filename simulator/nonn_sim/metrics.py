"""Figures of a run: accuracy, latency, availability, energy and bytes, from its trace.

The accuracy of an answer is that of the fused subset in the deployment's table. A request below the quorum has no
answer: it lowers availability, not the accuracy of answers; ``accuracy_per_request`` counts it as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.laws.outcome import meets
from nonn_sim.batches import quantile_interval, ratio_interval
from nonn_sim.deployments import Deployment
from nonn_sim.scenario import NodeConfig, Scenario
from nonn_sim.totals import WINDOWS
from nonn_sim.trace import RequestTrace, right_answers

__all__ = ["summary"]

PERCENTILES = (50, 95, 99)
MAX_WINDOWS = 1_000_000  # counted with empty ones; sparser windows are sorted, which takes several times the memory


def summary(trace: RequestTrace, deployment: Deployment, scenario: Scenario, num_devices: int) -> dict[str, Any]:
    """The figures of one run, ready for JSON.

    Args:
        trace: trace of the run.
        deployment: the deployment that ran.
        scenario: the scenario.
        num_devices: N of the bundle.

    Returns:
        ``accuracy`` of answers in [0, 1], ``accuracy_per_request`` (no answer is wrong), ``availability``,
        ``degraded`` (share of answers with a device missing), ``lost`` (requests), of which ``refused`` found no
        aggregator, ``retried`` (attempts after the first of a request), ``deadline_hits`` (requests that
        waited to the deadline), ``latency_s`` of answers at percentiles, ``energy_j_per_answer``,
        ``bytes_per_answer``, ``intervals`` (95 %, by batch means), ``levels`` (the share of requests whose answer
        reaches each accuracy of the scenario's ``levels``, its interval, and the time of the first that does not),
        ``windows`` of accuracy over time, ``nodes`` (averages over cells), and for a fleet the
        ``worst_cell``. Undefined figures are None.
    """
    settings = scenario.devices(num_devices)
    nodes = [settings[device] for device in deployment.devices]
    if trace.totals is None:
        found = _of_requests(trace, deployment, _window_s(scenario, trace.ended_s), scenario.scenario.levels)
    else:
        found = trace.totals.figures(PERCENTILES)
    num_answers = found["answers"]
    energy_j, sent_bytes = _energy_j(trace, deployment, nodes), _bytes(trace, deployment)
    result: dict[str, Any] = {
        "deployment": deployment.name,
        "note": deployment.note,
        **found,
        "degraded": None if deployment.first_wins else found["degraded"],
        "refused": trace.refused,
        "retried": trace.retried,
        "energy_j_per_answer": float(energy_j.sum()) / num_answers if num_answers else None,
        "bytes_per_answer": float(sent_bytes.sum()) / num_answers if num_answers else None,
        "ended_s": trace.ended_s,
        "faults": len(trace.events),
        "nodes": [
            {
                "node": device,
                "asked": int(trace.asked[:, i].sum()),
                "answered": int(trace.good[:, i].sum()),
                "answered_share": _share(trace.good[:, i].sum(), trace.asked[:, i].sum()),
                "on": float(trace.on_s[:, i].mean() / trace.ended_s) if trace.ended_s else None,
                "energy_j": float(energy_j[:, i].mean()),
            }
            for i, device in enumerate(deployment.devices)
        ],
    }
    if scenario.fleet.cells > 1:
        result["cells"] = scenario.fleet.cells
        shares = [_share(good, asked) for good, asked in zip(trace.good.sum(1), trace.asked.sum(1), strict=True)]
        known = [(share, cell) for cell, share in enumerate(shares) if share is not None]
        worst = min(known) if known else None
        result["worst_cell"] = {"cell": worst[1], "answered_share": worst[0]} if worst else None
    return result


def _of_requests(
    trace: RequestTrace, deployment: Deployment, window_s: float, levels: Sequence[float]
) -> dict[str, Any]:
    """The figures about requests, from each of them; a few arrays as long are in memory at once."""
    answered = trace.answered
    right = right_answers(deployment, trace.sets, trace.which, answered)
    latency_s = trace.latency_s[answered]
    whole = trace.sets.index(deployment.full) if deployment.full in trace.sets else -1
    num_answers = int(answered.sum())
    return {
        "requests": len(answered),
        "answers": num_answers,
        "lost": len(answered) - num_answers,
        "availability": _mean(answered),
        "accuracy": float(right.sum() / num_answers) if num_answers else None,
        "accuracy_per_request": _mean(right),
        "degraded": _mean(trace.which[answered] != whole),
        "deadline_hits": int(trace.waited.sum()),
        "latency_s": percentiles(latency_s),
        "intervals": {  # of another run of the same length
            "accuracy": ratio_interval(right, answered),
            "availability": ratio_interval(answered, np.ones(len(answered), np.bool_)),
            "latency_p99_s": quantile_interval(latency_s, 0.99),
        },
        "levels": [_level(level, meets(right, level), trace.asked_at_s) for level in levels],
        "windows": windows(trace.asked_at_s, right, answered, window_s),
    }


def _level(level: float, reached: NDArray[np.bool_], asked_at_s: NDArray[np.float64]) -> dict[str, Any]:
    """How many requests reach an accuracy, and when the first does not."""
    missed_at_s = asked_at_s[~reached]
    return {
        "level": level,
        "reached": _mean(reached),
        "interval": ratio_interval(reached, np.ones(len(reached), np.bool_)),
        "first_missed_s": float(missed_at_s.min()) if len(missed_at_s) else None,
    }


def percentiles(latency_s: NDArray[np.float64]) -> dict[str, float | None]:
    """p50, p95, p99 and the maximum."""
    if not len(latency_s):
        return {**{f"p{p}": None for p in PERCENTILES}, "max": None}
    values = np.percentile(latency_s, PERCENTILES)
    named: dict[str, float | None] = {f"p{p}": float(v) for p, v in zip(PERCENTILES, values, strict=True)}
    return {**named, "max": float(latency_s.max())}


def windows(
    asked_at_s: NDArray[np.float64],
    right: NDArray[np.float64],
    answered: NDArray[np.bool_],
    window_s: float,
) -> list[dict[str, Any]]:
    """Accuracy and availability over time; windows without a request are left out."""
    number = asked_at_s // window_s if window_s else np.zeros(len(asked_at_s))
    if len(number) and number.max() < MAX_WINDOWS:
        window = number.astype(np.int64)
        requests = np.bincount(window)
        numbers = np.arange(len(requests))
    else:
        numbers, window, requests = np.unique(number, return_inverse=True, return_counts=True)
    answers = np.bincount(window, weights=answered)
    sums = np.bincount(window, weights=right)
    return [
        {
            "from_s": float(numbers[w] * window_s),
            "requests": int(requests[w]),
            "availability": float(answers[w] / requests[w]),
            "accuracy": float(sums[w] / answers[w]) if answers[w] else None,
        }
        for w in np.flatnonzero(requests).tolist()
    ]


def _window_s(scenario: Scenario, ended_s: float) -> float:
    run = scenario.scenario
    return run.window_s or (run.duration_s or ended_s) / WINDOWS


def _energy_j(trace: RequestTrace, deployment: Deployment, nodes: list[NodeConfig]) -> NDArray[np.float64]:
    """Energy of each device, for requests and for being on, in joules [cells, n]."""
    work = deployment.work
    request_j = np.array(
        [
            w.macs * node.joule_per_mac + (w.request_bytes + w.reply_bytes) * node.joule_per_byte
            for w, node in zip(work, nodes, strict=True)
        ]
    )
    result: NDArray[np.float64] = trace.served * request_j + trace.on_s * np.array([node.idle_w for node in nodes])
    return result


def _bytes(trace: RequestTrace, deployment: Deployment) -> NDArray[np.float64]:
    """Bytes on each link: requests to reached devices, and good replies [cells, n]."""
    work = deployment.work
    result: NDArray[np.float64] = trace.served * np.array([w.request_bytes for w in work])
    result += trace.good * np.array([w.reply_bytes for w in work])
    return result


def _mean(values: NDArray[np.generic]) -> float | None:
    return float(values.mean()) if len(values) else None


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
