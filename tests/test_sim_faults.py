from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from nonn_sim.cells import Cell
from nonn_sim.deployments import bundle_deployment
from nonn_sim.engine import Engine
from nonn_sim.faults import World
from nonn_sim.simulate import simulate, simulate_once

from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.reliability.subsets import mask_of
from tests.toys import toy_bundle
from tests.worlds import NUM_DEVICES, trace_of, world


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("engine") / "bundle", num_devices=NUM_DEVICES)


def test_a_node_that_hangs_is_waited_for_once_and_comes_back_by_a_probe(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 10.0},
        load={"arrivals": "fixed", "rate_per_s": 5.0},
        fault=[{"at_s": 2.1, "kind": "stop", "nodes": [0], "for_s": 4.0}],
    )
    row, trace = simulate_once(scenario, bundle)
    assert row["deadline_hits"] == 1
    assert row["latency_s"]["max"] == pytest.approx(scenario.policy.deadline_s)
    back = trace.asked_at_s[(trace.asked_at_s > 2.1) & (trace.mask == 0b1111)].min()
    assert 6.1 <= back <= 6.1 + scenario.policy.breaker_reset_s + scenario.policy.deadline_s + 0.2


@pytest.mark.parametrize("quorum", [1, 4])
def test_probes_of_a_device_that_is_gone_for_long_are_left_out_and_change_nothing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, quorum: int
) -> None:
    """Below the quorum, requests ask devices that are gone, so their probes matter."""
    scenario = world(
        scenario={"requests": 150},
        load={"rate_per_s": 0.5},
        policy={"quorum": quorum, "breaker_reset_s": 0.7},
        nodes={"mtbf_s": 120.0, "mttr_s": 100.0},
        link={"jitter_s": 0.003, "p_loss": 0.01},
        fault=[{"at_s": 30.0, "kind": kind, "nodes": [k], "for_s": 60.0} for k, kind in enumerate(("kill", "stop"))],
    )
    probes, probe = list[float](), Engine._probe

    def counted(engine: Engine, cell: Cell, i: int, now: float) -> None:
        probes.append(now)
        probe(engine, cell, i, now)

    monkeypatch.setattr(Engine, "_probe", counted)
    _, rested = simulate_once(scenario, bundle)
    few = len(probes)
    monkeypatch.setattr(Cell, "rest", lambda cell, i: None)
    _, every = simulate_once(scenario, bundle)
    assert len(probes) - few > (10 if quorum == 1 else 1) * few
    np.testing.assert_array_equal(rested.mask, every.mask)
    np.testing.assert_allclose(rested.latency_s, every.latency_s, atol=1e-9)
    np.testing.assert_array_equal(rested.served, every.served)


def test_a_corrupt_reply_is_a_failure_of_its_node_and_is_not_fused(bundle: Bundle) -> None:
    scenario = world(fault=[{"at_s": 0.0, "kind": "corrupt", "nodes": [2]}])
    _, trace = simulate_once(scenario, bundle)
    assert (trace.mask == 0b1011).all()
    assert not trace.waited.any()
    assert trace.good[0, 2] == 0


def test_churn_takes_as_much_time_off_as_its_means_say(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 200_000.0}, load={"rate_per_s": 0.01}, nodes={"mtbf_s": 300.0, "mttr_s": 100.0}
    )
    row, _ = simulate_once(scenario, bundle)
    for node in row["nodes"]:
        assert node["on"] == pytest.approx(0.75, abs=0.04)


def test_a_battery_lasts_as_long_as_its_energy(bundle: Bundle) -> None:
    deployment = bundle_deployment(bundle)
    work = deployment.work[0]
    scenario = world(
        scenario={"duration_s": 2000.0},
        load={"arrivals": "fixed", "rate_per_s": 10.0},
        nodes={"joule_per_mac": 1e-5, "joule_per_byte": 1e-6, "idle_w": 0.02},
        node=[{"device": 0, "battery_j": 50.0}],
    )
    row, trace = simulate_once(scenario, bundle)
    request_j = work.macs * 1e-5 + (work.request_bytes + work.reply_bytes) * 1e-6
    [death] = trace.events
    assert (death.node, death.event) == (0, "off")
    assert death.time_s == pytest.approx(50.0 / (10.0 * request_j + 0.02), abs=2.0)
    assert row["nodes"][0]["energy_j"] == pytest.approx(50.0, rel=0.01)
    assert row["nodes"][1]["energy_j"] == pytest.approx(2000 * (10 * request_j + 0.02), rel=0.01)


def test_a_group_shares_its_fate_in_every_cell_of_its_own(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 3000.0},
        load={"rate_per_s": 0.1},
        fleet={"cells": 3},
        group=[{"name": "strip", "nodes": [1, 2], "mtbf_s": 100.0, "mttr_s": 10.0}],
    )
    _, trace = simulate_once(scenario, bundle)
    assert {event.node for event in trace.events} == {1, 2}
    times = {cell: [e.time_s for e in trace.events if e.cell == cell and e.node == 1] for cell in range(3)}
    for cell, mine in times.items():
        assert mine == [e.time_s for e in trace.events if e.cell == cell and e.node == 2]
        assert len(mine) > 10
    assert times[0] != times[1]


def test_a_node_that_was_killed_is_back_after_its_start(bundle: Bundle) -> None:
    fault = {"at_s": 1.0, "kind": "kill", "nodes": [1], "for_s": 0.5}
    scenario = world(nodes={"restart_s": 0.25}, fault=[fault])
    _, trace = simulate_once(scenario, bundle)
    assert [(event.time_s, event.event) for event in trace.events] == [(1.0, "kill"), (1.75, "restart")]


def test_faults_of_one_kind_that_overlap_end_with_the_last(bundle: Bundle) -> None:
    overlap = [
        {"at_s": 1.0, "kind": "off", "nodes": [1], "for_s": 1.0},
        {"at_s": 1.5, "kind": "off", "nodes": [1], "for_s": 1.5},
    ]
    scenario = world(scenario={"duration_s": 8.0}, fault=overlap)
    row, trace = simulate_once(scenario, bundle)
    assert (trace.mask[(trace.asked_at_s > 1.0) & (trace.asked_at_s < 3.0)] & 0b0010 == 0).all()
    assert (trace.mask[trace.asked_at_s > 5.5] == 0b1111).all()
    assert row["nodes"][1]["on"] == pytest.approx(6 / 8)


def test_a_device_that_is_reachable_again_is_found_within_the_time_between_two_attempts(bundle: Bundle) -> None:
    cut = {"at_s": 1.0, "kind": "partition", "nodes": [1], "for_s": 1.0}
    # A breaker that never leaves anybody out, so that requests themselves tell when the device is back.
    scenario = world(scenario={"duration_s": 5.0}, policy={"breaker_failures": 10_000}, fault=[cut])
    waits = []
    for seed in range(10):
        trace = trace_of(scenario, bundle, seed=seed)
        back = trace.asked_at_s[(trace.asked_at_s > 1.0) & (trace.mask == 0b1111)].min()
        waits.append(back - 2.0)
    assert 0.1 < np.mean(waits) < 0.4
    assert max(waits) < 0.5 + 0.1


@pytest.mark.parametrize(("count", "cells"), [(1, 1), (2, 1), (1, 2)])
def test_requests_are_lost_for_the_share_of_time_that_no_aggregator_is_up(
    count: int, cells: int, bundle: Bundle
) -> None:
    scenario = world(
        scenario={"duration_s": 4000.0},
        load={"arrivals": "fixed", "rate_per_s": 2.0},
        aggregator={"count": count, "mtbf_s": 6.0, "mttr_s": 3.0},
        fleet={"cells": cells},
    )
    row, trace = simulate_once(scenario, bundle)
    assert row["refused"] == row["lost"] == 8000 - row["answers"]
    # About 440 cycles of up and down for each machine: the share varies by 0.02. The front tier goes round a cell that
    # is not served, so two cells are as good as two aggregators.
    assert row["availability"] == pytest.approx(1 - (1 / 3) ** (count * cells), abs=0.05)
    assert row["accuracy"] == pytest.approx(bundle.table.accuracy[-1])
    np.testing.assert_array_equal(trace.answered, simulate_once(scenario, bundle)[1].answered)


def outages(**sections: Any) -> tuple[list[float], list[float]]:
    """Times up and times down of the devices of a world, in the order of their ends."""
    scenario = world(**sections)
    log = World(scenario, NUM_DEVICES, 0, lambda *change: None)
    log.env.run(until=scenario.scenario.duration_s)
    since, times = dict.fromkeys(range(NUM_DEVICES), 0.0), {"off": list[float](), "on": list[float]()}
    for event in log.log:
        times[event.event].append(event.time_s - since[event.node])
        since[event.node] = event.time_s
    return times["off"], times["on"]


def test_times_up_are_weibull_and_repairs_log_normal_with_their_means() -> None:
    nodes = {"mtbf_s": 10.0, "mtbf_shape": 3.0, "mttr_s": 2.0, "mttr_cv": 0.5}
    up, down = outages(scenario={"duration_s": 5000.0}, nodes=nodes)
    assert np.mean(up) == pytest.approx(10, rel=0.03)
    assert np.std(up) / np.mean(up) == pytest.approx(0.363, abs=0.03)  # of a Weibull distribution of shape 3
    assert np.mean(down) == pytest.approx(2, rel=0.05)
    assert np.std(down) / np.mean(down) == pytest.approx(0.5, abs=0.08)
    assert np.std(np.log(down)) == pytest.approx(np.sqrt(np.log(1.25)), abs=0.05)


def test_devices_that_wait_for_one_crew_are_down_as_the_machine_repair_model_says() -> None:
    nodes = {"mtbf_s": 10.0, "mttr_s": 5.0}
    up, down = outages(scenario={"duration_s": 20_000.0}, nodes=nodes, fleet={"repair_crews": 1})
    # M/M/1//N: p_k ∝ N! / (N − k)! (repair / up)^k for k devices down.
    weight = [math.perm(NUM_DEVICES, k) * 0.5**k for k in range(NUM_DEVICES + 1)]
    mean_down = sum(k * w for k, w in enumerate(weight)) / sum(weight)
    assert sum(down) / (sum(up) + sum(down)) == pytest.approx(mean_down / NUM_DEVICES, abs=0.02)
    free = outages(scenario={"duration_s": 20_000.0}, nodes=nodes, fleet={"repair_crews": NUM_DEVICES})[1]
    assert np.mean(free) == pytest.approx(5, rel=0.05)
    assert np.mean(down) > 1.5 * np.mean(free)


def test_a_student_is_lost_when_its_last_replica_is(bundle: Bundle) -> None:
    def kill(at_s: float, *nodes: int) -> dict[str, Any]:
        return {"at_s": at_s, "kind": "kill", "nodes": list(nodes)}

    scenario = world(
        scenario={"duration_s": 40.0},
        load={"arrivals": "fixed", "rate_per_s": 10.0},
        fleet={"replicas": 2},
        fault=[kill(9.99, 1), kill(19.99, 5), kill(29.99, 2)],
    )
    row, trace = simulate_once(scenario, bundle)
    assert row["lost"] == 0
    assert len(row["nodes"]) == 2 * NUM_DEVICES
    assert trace.served.shape == (1, 2 * NUM_DEVICES)
    without_one, everyone = mask_of([0, 2, 3]), mask_of(range(4))
    late = trace.mask[trace.asked_at_s >= 20]
    assert set(trace.mask[trace.asked_at_s < 9.9]) == {everyone}
    # The other replica of student 1, then of student 2, answers after at most a few requests.
    assert (trace.mask[(trace.asked_at_s > 12) & (trace.asked_at_s < 19.9)] == everyone).all()
    assert (late[-50:] == without_one).all()
    assert row["degraded"] == pytest.approx(0.5, abs=0.03)
    assert simulate(scenario, bundle)["not_compared"] == ["alternatives: they are placed on 4 devices, not on 8"]


def test_sixty_four_devices_of_four_students_are_as_good_as_their_students(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 500.0},
        load={"rate_per_s": 2.0},
        nodes={"mtbf_s": 50.0, "mttr_s": 50.0},
        fleet={"replicas": 16},
    )
    row, _ = simulate_once(scenario, bundle)
    # Half of all devices are down at any time; a student is with a probability of 2^-16.
    assert row["accuracy"] == pytest.approx(bundle.table.accuracy[-1], abs=0.02)
    with pytest.raises(ConfigError, match=r"there is no node 64; the bundle has 0 to 63, with 16 replicas"):
        world(fleet={"replicas": 16}, fault=[{"at_s": 1, "kind": "kill", "nodes": [64]}]).devices(NUM_DEVICES)
