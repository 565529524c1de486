"""Alternatives to NoNN in the same simulated world: the teacher on one or every device, layer splitting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from nonn_sim.alternatives import alternatives, boundary_elements
from nonn_sim.engine import Engine
from nonn_sim.scenario import LoadConfig
from nonn_sim.simulate import simulate

from nonn.bundle import Bundle
from tests.worlds import NUM_DEVICES, world


def test_boundaries_of_a_wide_residual_network_follow_from_its_name() -> None:
    # WRN-10-1 on 32 × 32: one convolution to 16 maps, then two in each of three stages.
    assert boundary_elements("wrn-10-1", (3, 32, 32)) == [16384, 16384, 16384, 8192, 8192, 4096, 4096]
    elements = boundary_elements("wrn-40-4", (3, 32, 32))
    assert elements is not None
    assert len(elements) == 37
    assert boundary_elements("wrn-10-2", (9, 5)) == [80, 160, 160, 192, 192, 256, 256]
    assert boundary_elements("strided-4-2", (45, 125)) == [32 * 63, 64 * 32, 128 * 16, 128 * 8]
    assert boundary_elements("wrn-11-1", (3, 32, 32)) is None
    assert boundary_elements("prototypes", (1, 8, 8)) is None


def wrn_bundle(bundle: Bundle) -> Any:
    """The same bundle, whose teacher is said to be a wide residual network."""
    teacher = {"model": "wrn-16-2", "params": 1, "macs": 100_000, "accuracy": 0.99}
    return replace(bundle, manifest=replace(bundle.manifest, teacher=teacher))


def test_alternatives_live_in_the_same_world_and_pay_for_it(bundle: Bundle) -> None:
    scenario = world(
        scenario={"duration_s": 10.0},
        load={"arrivals": "fixed", "rate_per_s": 10.0},
        policy={"deadline_s": 0.5},
        nodes={"speed_macs_per_s": 1e7},
        node=[{"device": 3, "speed_macs_per_s": 2e7}],
        link={"bandwidth_bytes_per_s": 1e7},
        fault=[{"at_s": 4.999, "kind": "off", "nodes": [3]}],
    )
    result = simulate(scenario, wrn_bundle(bundle))
    rows = {row["deployment"]: row for row in result["rows"]}
    assert list(rows) == ["nonn", "teacher on one device", "teacher on every device", "layer splitting", "NoNN fusion"]
    assert result["not_compared"] == []
    assert rows["nonn"]["availability"] == 1.0
    assert rows["teacher on one device"]["availability"] == 0.5  # the fastest is the one that dies
    assert rows["layer splitting"]["availability"] == 0.5  # any loss is fatal
    assert rows["layer splitting"]["accuracy"] == pytest.approx(0.99)
    assert rows["teacher on every device"]["availability"] == 1.0
    assert rows["teacher on every device"]["accuracy"] == pytest.approx(0.99)
    elements = boundary_elements("wrn-16-2", (1, 8, 8))
    assert elements is not None
    maps_bytes = 4 * sum(elements)
    before = rows["layer splitting"]["bytes_per_answer"] * rows["layer splitting"]["answers"]
    assert before >= 50 * 2 * maps_bytes
    assert rows["layer splitting"]["latency_s"]["p50"] > 26 * 0.001  # 13 boundaries, there and back
    assert rows["NoNN fusion"]["accuracy"] <= rows["nonn"]["accuracy"]


def test_the_first_answer_wins_where_every_device_has_the_whole_teacher(bundle: Bundle) -> None:
    nodes = world(node=[{"device": 1, "service_s": 0.002}], load={"rate_per_s": 5.0})
    rows, _ = alternatives(wrn_bundle(bundle), nodes.devices(NUM_DEVICES))
    [every] = [row for row in rows if row.first_wins]
    scenario = replace(
        nodes, load=LoadConfig(arrivals="fixed", rate_per_s=1.0), policy=replace(nodes.policy, deadline_s=9)
    )
    trace = Engine(scenario, NUM_DEVICES, every, seed=0).run()
    teacher_s = 0.002 * 100_000 / bundle.manifest.students[1].macs
    np.testing.assert_allclose(trace.latency_s, teacher_s + 0.002)
    assert (trace.mask == 0b0010).all()


def test_a_bundle_without_features_says_why_a_row_is_missing(bundle: Bundle) -> None:
    bare = {name: digest for name, digest in bundle.manifest.files.items() if name != "features.npz"}
    poor = replace(bundle, manifest=replace(bundle.manifest, files=bare))
    _, missing = alternatives(poor, world().devices(NUM_DEVICES))
    assert any("features.npz" in line for line in missing)
    assert any("prototypes" in line for line in missing)
