from __future__ import annotations

import json
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
from nonn_sim.deployments import bundle_deployment
from nonn_sim.engine import Engine
from nonn_sim.links import Channel, DeviceWork, arrivals
from nonn_sim.metrics import summary
from nonn_sim.scenario import LinkConfig, LoadConfig
from nonn_sim.simulate import simulate, simulate_once

from nonn.bundle import Bundle
from nonn.reliability.subsets import mask_of
from tests.toys import toy_bundle
from tests.worlds import NUM_DEVICES, trace_of, world


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("engine") / "bundle", num_devices=NUM_DEVICES)


def test_without_a_fault_a_request_takes_what_its_slowest_device_takes(bundle: Bundle) -> None:
    scenario = world(
        load={"arrivals": "fixed", "rate_per_s": 20.0},
        aggregator={"overhead_s": 0.01, "per_node_s": 0.001},
        node=[{"device": 2, "service_s": 0.03}],
    )
    trace = trace_of(scenario, bundle)
    assert trace.answered.all()
    assert (trace.mask == mask_of(range(NUM_DEVICES))).all()
    np.testing.assert_allclose(trace.latency_s, 0.001 + 0.03 + 0.001 + 0.01 + NUM_DEVICES * 0.001)


def test_accuracy_is_the_tables_for_exactly_the_sets_that_answered(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 10.0, "levels": [0.1, float(bundle.table.accuracy[0b1111])]},
        load={"arrivals": "fixed", "rate_per_s": 10.0},
        fault=[{"at_s": 4.999, "kind": "kill", "nodes": [1, 3]}],
    )
    row, trace = simulate_once(scenario, bundle)
    table = bundle.table.accuracy
    assert set(trace.mask) == {0b1111, 0b0101}
    assert row["accuracy"] == pytest.approx((table[0b1111] + table[0b0101]) / 2)
    assert row["windows"][0]["accuracy"] == pytest.approx(table[0b1111])
    low, high = row["windows"][0]["test_interval"]
    assert low <= table[0b1111] <= high
    assert high - low > 0.005
    always, half = row["levels"]
    assert (always["level"], always["reached"], always["first_missed_s"]) == (0.1, 1.0, None)
    assert (half["reached"], half["first_missed_s"]) == (0.5, 5.0)
    assert half["interval"][0] < 0.5 < half["interval"][1]
    assert row["windows"][-1]["accuracy"] == pytest.approx(table[0b0101])
    assert row["degraded"] == 0.5
    assert row["deadline_hits"] == 0  # who is killed refuses, and nobody waits
    assert [(event.node, event.event) for event in trace.events] == [(1, "kill"), (3, "kill")]


def test_below_the_quorum_a_request_is_lost_and_counts_against_availability(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 10.0},
        load={"arrivals": "fixed", "rate_per_s": 10.0},
        policy={"quorum": 3},
        fault=[{"at_s": 4.999, "kind": "off", "nodes": [1, 3]}],
    )
    row, _ = simulate_once(scenario, bundle)
    assert (row["requests"], row["answers"], row["lost"], row["availability"]) == (100, 50, 50, 0.5)
    assert row["accuracy"] == pytest.approx(bundle.table.accuracy[0b1111])
    assert row["accuracy_per_request"] == pytest.approx(bundle.table.accuracy[0b1111] / 2)
    assert row["windows"][-1]["accuracy"] is None


def test_a_client_that_retries_loses_only_what_outlasts_its_attempts_and_waits_for_it(bundle: Bundle) -> None:
    load = {"arrivals": "fixed", "rate_per_s": 10.0, "retries": 2, "retry_after_s": 1.0}
    off = {"at_s": 4.999, "kind": "off", "nodes": [1, 3]}
    sizes = {"scenario": {"duration_s": 10.0}, "policy": {"quorum": 3}}
    row, trace = simulate_once(world(load=load, fault=[off], **sizes), bundle)
    # Two more attempts of each of the 50 requests that find two devices away, and one row for each request.
    assert (row["requests"], row["lost"], row["retried"]) == (100, 50, 100)
    assert trace.latency_s[~trace.answered].min() >= 2.0
    assert trace.asked_at_s[~trace.answered].min() == pytest.approx(5.0)
    load |= {"retries": 9}
    row, trace = simulate_once(world(load=load, fault=[off | {"for_s": 2.5}], **sizes), bundle)
    assert (row["requests"], row["lost"], row["availability"]) == (100, 0, 1.0)
    first = trace.latency_s[np.isclose(trace.asked_at_s, 5.0)][0]
    assert 2.5 <= first <= 5.0


def test_arrivals_follow_the_day_and_keep_their_mean() -> None:
    load = LoadConfig(rate_per_s=1.0, daily_swing=1.0, day_s=1000.0, peak_at_s=250.0)
    times = np.array(list(takewhile(lambda at: at < 20_000, arrivals(load, seed=1))))
    assert (np.diff(times) > 0).all()
    assert len(times) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    # Half of a day around the peak has ½ + 1/π of the requests.
    near = np.cos(2 * np.pi * (times - 250) / 1000) > 0
    assert near.mean() == pytest.approx(0.5 + 1 / np.pi, abs=5 * (0.15 / len(times)) ** 0.5)


def test_a_delay_that_fits_into_the_deadline_only_costs_time(bundle: Bundle) -> None:
    scenario = world(load={"rate_per_s": 10.0}, fault=[{"at_s": 0.0, "kind": "delay", "nodes": [2], "delay_s": 0.05}])
    _, trace = simulate_once(scenario, bundle)
    assert (trace.mask == 0b1111).all()
    assert trace.latency_s.min() >= 0.05


@pytest.mark.parametrize("link", [{"p_loss": 0.1}, {"p_loss": 0.01, "p_loss_bad": 0.5, "good_s": 3.0, "bad_s": 1.0}])
def test_a_link_loses_the_share_that_its_law_says(link: Any) -> None:
    link = LinkConfig(**link)
    channel, rng, num = Channel(link), np.random.default_rng(0), 100_000
    lost = sum(channel.lost(0.05 * k, *rng.random(2)) for k in range(num))
    p_bad = link.bad_s / (link.good_s + link.bad_s) if link.good_s else 0.0
    assert lost / num == pytest.approx((1 - p_bad) * link.p_loss + p_bad * link.p_loss_bad, rel=0.06)


def test_losses_of_a_bursty_link_come_together() -> None:
    link = LinkConfig(p_loss=0.0, p_loss_bad=1.0, good_s=9.0, bad_s=1.0)
    channel, rng = Channel(link), np.random.default_rng(0)
    lost = np.array([channel.lost(0.1 * k, *rng.random(2)) for k in range(50_000)])
    # P(bad 0.1 s later | bad) = π + (1 − π) e^−(1/9 + 1)/10
    assert lost[1:][lost[:-1]].mean() == pytest.approx(0.1 + 0.9 * np.exp(-(1 / 9 + 1) * 0.1), abs=0.02)


def behind_an_access_point(bundle: Bundle, nodes: int, work: DeviceWork, bytes_per_s: float, **sections: Any) -> Any:
    """The latencies of requests to devices that share an access point, in seconds."""
    group = {"name": "air", "nodes": list(range(nodes)), "bandwidth_bytes_per_s": bytes_per_s}
    scenario = world(group=[group], policy={"deadline_s": 10.0}, **sections)
    same: dict[str, Any] = {"devices": tuple(range(nodes)), "work": (work,) * nodes, "macs_of_service": (1.0,) * nodes}
    return trace_of(scenario, bundle, replace(bundle_deployment(bundle), **same)).latency_s


def test_requests_wait_for_their_access_point_as_long_as_queueing_theory_says(bundle: Bundle) -> None:
    sections = {"scenario": {"requests": 25_000}, "load": {"rate_per_s": 70.0}, "link": {"latency_s": 0.0}}
    # 10 ms a request, no reply
    latency_s = behind_an_access_point(bundle, 1, DeviceWork(0.0, 1000, 0), 1e5, **sections)
    assert latency_s.min() == pytest.approx(0.01)
    # M/D/1: a load of 0.7 waits 0.7 · 10 ms ÷ (2 · 0.3) on average.
    assert latency_s.mean() - 0.01 == pytest.approx(0.01 * 0.7 / 0.6, rel=0.1)


def test_requests_and_replies_take_turns_at_the_access_point(bundle: Bundle) -> None:
    sections = {"scenario": {"requests": 20}, "load": {"arrivals": "fixed", "rate_per_s": 10.0}}
    latency_s = behind_an_access_point(bundle, 4, DeviceWork(1.0, 2000, 3000), 1e6, **sections)
    # Requests are sent after 2, 4, 6 and 8 ms, the first reply is computed after 2 + 1 + 4 ms and waits until 8, and
    # each of the four then takes 3 ms; the last has 1 ms to go.
    np.testing.assert_allclose(latency_s, 0.021)


def test_the_front_tier_leaves_out_cells_that_cannot_reach_their_quorum(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 20.0},
        load={"arrivals": "fixed", "rate_per_s": 30.0},
        policy={"quorum": 3},
        fleet={"cells": 3},
        fault=[{"at_s": 5.0, "kind": "off", "nodes": [0, 1], "cells": [2]}],
    )
    row, trace = simulate_once(scenario, bundle)
    # Each node fails in at most a few requests that are under way before its cell is known to be down.
    assert 0 < row["lost"] <= 5
    assert row["worst_cell"]["cell"] == 2
    assert trace.asked[0].min() > 1.4 * trace.asked[2].max()


def test_clients_of_a_closed_load_wait_for_their_answers(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 10.0},
        load={"arrivals": "closed", "concurrency": 3},
        aggregator={"overhead_s": 0.014},
        nodes={"service_s": 0.001},
        link={"latency_s": 0.0025},
    )
    _, trace = simulate_once(scenario, bundle)
    assert len(trace.latency_s) == pytest.approx(3 * 10.0 / 0.02, abs=3)
    np.testing.assert_allclose(trace.latency_s[3:], 0.02)  # the first three meet at the devices


def test_the_same_seed_gives_the_same_json_and_another_seed_does_not(bundle: Bundle) -> None:
    scenario = world(nodes={"service_cv": 0.3, "mtbf_s": 3.0, "mttr_s": 0.5}, link={"jitter_s": 0.001, "p_loss": 0.01})
    first, again = (json.dumps(simulate(scenario, bundle)) for _ in range(2))
    assert first == again
    other = replace(scenario, scenario=replace(scenario.scenario, seed=1))
    assert json.dumps(simulate(other, bundle)) != first


def test_runs_over_seeds_and_processes_are_those_of_each_seed_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nonn_sim.simulate.FEW", 0)
    scenario = world(scenario={"requests": 200}, nodes={"mtbf_s": 1.0, "mttr_s": 0.5})
    both = simulate(scenario, bundle, seeds=2, compare=False)["rows"][0]
    alone = [
        simulate_once(replace(scenario, scenario=replace(scenario.scenario, seed=seed)), bundle)[0] for seed in (0, 1)
    ]
    assert {key: both[key] for key in alone[0]} == alone[0]
    assert both["over_seeds"]["accuracy"]["mean"] == pytest.approx(np.mean([row["accuracy"] for row in alone]))
    assert both["over_seeds"]["lost"]["sd"] == pytest.approx(np.std([row["lost"] for row in alone], ddof=1))


def test_figures_of_nothing_are_none(bundle: Bundle) -> None:
    scenario = world(scenario={"duration_s": 1e-6}, load={"rate_per_s": 1.0})
    deployment = bundle_deployment(bundle)
    row = summary(trace_of(scenario, bundle), deployment, scenario, NUM_DEVICES)
    assert row["requests"] == 0
    assert row["accuracy"] is None
    assert row["latency_s"]["p99"] is None
    assert json.loads(json.dumps(row)) == row


def test_a_million_requests_fit_into_a_minute(bundle: Bundle) -> None:
    import time

    scenario = world(scenario={"requests": 20_000}, nodes={"service_cv": 0.2, "mtbf_s": 100.0, "mttr_s": 10.0})
    start = time.process_time()
    trace_of(scenario, bundle)
    # 60 µs a request is the limit; a fifth of it is usual.
    assert time.process_time() - start < 20_000 * 60e-6


def test_clients_in_a_hurry_do_not_switch_a_slow_node_off_for_others(bundle: Bundle) -> None:
    late = {"at_s": 1.0, "kind": "delay", "nodes": [1], "delay_s": 0.05}
    scenario = world(load={"rate_per_s": 20.0, "timeout_s": 0.04}, nodes={"service_s": 0.02}, fault=[late])
    _, trace = simulate_once(scenario, bundle)
    assert (trace.mask == 0b1101).any()
    assert trace.asked[0].tolist() == [500] * NUM_DEVICES


def test_measured_times_are_drawn_as_they_were_measured_and_do_not_queue(bundle: Bundle) -> None:
    measured_s = np.array([[0.01, 0.001], [0.02, 0.002], [0.09, 0.0]])
    scenario = world(scenario={"requests": 3000}, load={"rate_per_s": 200.0})
    trace = Engine(scenario, NUM_DEVICES, bundle_deployment(bundle), 0, measured_s=measured_s).run()
    values, counts = np.unique(trace.latency_s.round(9), return_counts=True)
    np.testing.assert_allclose(values, [0.011, 0.022, 0.09])
    assert counts.min() > 900


def test_a_client_of_a_closed_load_tries_again_after_its_deadline(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 300.0},
        load={"arrivals": "closed", "concurrency": 1, "timeout_s": 1.0},
        aggregator={"mtbf_s": 1e-3, "mttr_s": 1e9},
    )
    trace = trace_of(scenario, bundle)
    refused = trace.asked_at_s[~trace.answered]
    assert trace.refused == len(refused) >= 299
    np.testing.assert_allclose(np.diff(refused), 1.0)
