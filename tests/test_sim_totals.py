"""Runs that are too long to keep every request: the same figures from sums and a histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nonn_sim import totals, trace
from nonn_sim.simulate import simulate_once
from nonn_sim.totals import BINS, Totals

from nonn.bundle import Bundle
from tests.toys import toy_bundle
from tests.worlds import NUM_DEVICES, world

KEPT = 400
EXACT = ("requests", "answers", "lost", "availability", "accuracy", "accuracy_per_request", "degraded", "deadline_hits")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("totals") / "bundle", num_devices=NUM_DEVICES)


def both(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, **length: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of one run from every request, and from its totals."""
    scenario = world(
        scenario={**length, "levels": [0.2, float(bundle.table.accuracy[-1])]},
        load={"rate_per_s": 50.0},
        policy={"quorum": 3},
        nodes={"service_s": 0.004, "service_cv": 0.5, "mtbf_s": 6.0, "mttr_s": 1.0},
        link={"jitter_s": 0.002},
    )
    every, kept = simulate_once(scenario, bundle)
    with monkeypatch.context() as patch:
        patch.setattr(trace, "KEPT", KEPT)
        patch.setattr(totals, "KEPT", KEPT)
        summed, left = simulate_once(scenario, bundle)
    assert len(kept.latency_s) == every["requests"] > 6 * KEPT
    assert len(left.latency_s) == 0
    return every, summed


def test_totals_have_the_figures_of_every_request(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    every, summed = both(monkeypatch, bundle, duration_s=60.0)
    assert every["lost"] > 20
    assert {key: summed[key] for key in EXACT} == pytest.approx({key: every[key] for key in EXACT}, rel=1e-12)
    assert summed["latency_s"] == pytest.approx(every["latency_s"], rel=0.02)  # few requests are near the p99
    assert summed["latency_s"]["max"] == every["latency_s"]["max"]
    for mine, other in zip(summed["windows"], every["windows"], strict=True):
        ends = mine.pop("test_interval"), other.pop("test_interval")
        assert ends[0] == pytest.approx(ends[1])
        assert mine == pytest.approx(other)
    for key, value in (("accuracy", every["accuracy"]), ("latency_p99_s", every["latency_s"]["p99"])):
        ends, others = summed["intervals"][key], every["intervals"][key]
        assert ends[0] <= value <= ends[1]
        assert 0.4 < (ends[1] - ends[0]) / (others[1] - others[0]) < 2.5
    for mine, other in zip(summed["levels"], every["levels"], strict=True):
        assert 0 < other["reached"] < 1
        assert mine["reached"] == pytest.approx(other["reached"])
        assert mine["first_missed_s"] == other["first_missed_s"]
        assert mine["interval"][0] < other["reached"] < mine["interval"][1]
    rest = every.keys() - {*EXACT, "latency_s", "windows", "intervals", "levels"}
    assert {key: summed[key] for key in rest} == {key: every[key] for key in rest}


def test_a_run_of_so_many_requests_has_windows_of_about_a_twentieth(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    every, summed = both(monkeypatch, bundle, requests=2500)
    assert 18 <= len(summed["windows"]) <= 20
    assert sum(window["requests"] for window in summed["windows"]) == 2500
    assert summed["windows"][1]["from_s"] == pytest.approx(every["windows"][1]["from_s"], rel=0.2)


def test_memory_does_not_grow_with_the_run_and_quantiles_stay_exact_to_a_thousandth() -> None:
    rng, found, seen = np.random.default_rng(0), Totals(1.0), []
    for _ in range(12):
        times = rng.lognormal(-5, 1.5, 100_000)
        right = np.ones(len(times))
        found.add(np.zeros(len(times)), times, right, right > 0, waited=0, degraded=0)
        seen.append(times)
        assert len(found._batches) <= 40
    figures, every = found.figures((50, 95, 99)), np.concatenate(seen)
    assert found._batches[0].bins.shape == (BINS,)
    for share in (50, 95, 99):
        assert figures["latency_s"][f"p{share}"] == pytest.approx(np.percentile(every, share), rel=0.0011)
    low, high = figures["intervals"]["latency_p99_s"]
    assert low < np.percentile(every, 99) < high
