from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from nonn_sim.scenario import (
    AggregatorConfig,
    FleetConfig,
    Group,
    LinkConfig,
    LoadConfig,
    NodeConfig,
    RunConfig,
    ScheduledFault,
)
from nonn_sim.scenario_file import load_scenario, parse_scenario

from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import PolicyConfig
from nonn.errors import ConfigError
from nonn.reliability.placement import Machine
from nonn.toml.listing import tables_of

KINDS = (
    RunConfig,
    LoadConfig,
    AggregatorConfig,
    LinkConfig,
    NodeConfig,
    Group,
    ScheduledFault,
    FleetConfig,
    PolicyConfig,
    Node,
    Machine,
)
SHIPPED = sorted((Path(__file__).parent.parent / "simulator" / "scenarios").glob("*.toml"))
BASE = '[scenario]\nname = "s"\nduration_s = 10\n'


def parse(text: str) -> Any:
    return parse_scenario(tomllib.loads(BASE + text), source="s.toml")


def test_there_are_scenarios_to_start_from() -> None:
    assert {path.stem for path in SHIPPED} >= {"pi-cluster", "wearables", "flaky-wifi", "fleet"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_scenario_can_be_read_and_is_named_as_its_file(path: Any) -> None:
    scenario = load_scenario(path)
    assert scenario.scenario.name == path.stem
    assert scenario.devices(8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[nodes]\nmtbf_s = 1e-6\nmttr_s = 1e-6", "device 0: mtbf_s means about 1e+07 faults"),
        ('[[group]]\nname = "g"\nnodes = [0]\nmtbf_s = 1e-7\nmttr_s = 1e-7', "group 'g': mtbf_s means about 1e+08"),
        ('[[fault]]\nat_s = 1\nkind = "stop"\nnodes = [0, 1]\nfor_s = 1e-8\nevery_s = 1e-7', "fault[0]: every_s means"),
    ],
)
def test_faults_that_would_never_end_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text).devices(4)
    assert words in str(caught.value)
    assert parse("[nodes]\nmtbf_s = 1e-6\nmttr_s = 1").devices(4)


def test_a_devices_table_overrides_the_defaults_key_by_key() -> None:
    scenario = parse(
        """
        [nodes]
        service_s = 0.5
        mtbf_s = 10
        mttr_s = 1
        [link]
        latency_s = 0.1
        p_loss = 0.2
        [[node]]
        device = 1
        speed_macs_per_s = 5.0
        link = { latency_s = 0.3 }
        """
    )
    plain, special = scenario.devices(2)
    assert (plain.service_s, plain.speed_macs_per_s, plain.mtbf_s) == (0.5, 0.0, 10.0)
    assert (special.service_s, special.speed_macs_per_s, special.mtbf_s) == (0.0, 5.0, 10.0)
    assert (plain.link.latency_s, special.link.latency_s) == (0.1, 0.3)
    assert plain.link.p_loss == special.link.p_loss == 0.2


def test_a_devices_table_may_leave_the_time_of_an_inference_as_it_is() -> None:
    scenario = parse("[nodes]\nservice_s = 0.5\n[[node]]\ndevice = 0\nbattery_j = 3.0")
    assert (scenario.devices(1)[0].service_s, scenario.devices(1)[0].speed_macs_per_s) == (0.5, 0.0)


def test_a_fault_of_a_group_is_of_its_devices_and_of_those_named() -> None:
    scenario = parse(
        '[[group]]\nname = "g"\nnodes = [2, 0]\n[[fault]]\nat_s = 1\nkind = "kill"\ngroup = "g"\nnodes = [5]'
    )
    assert scenario.targets(scenario.faults[0]) == (0, 2, 5)


FAULT = '[[fault]]\nat_s = 1\nkind = "kill"\n'
IMPOSSIBLE = {
    "unknown section": ("[noodes]\nservice_s = 1.0", "unknown key 'noodes'; did you mean 'nodes'?"),
    "unknown key": ("[load]\nrate_per_sec = 3", "unknown key 'load.rate_per_sec'; did you mean 'load.rate_per_s'?"),
    "unknown key of a node": ("[nodes]\nservice = 3", "unknown key 'nodes.service'; did you mean 'nodes.service_s'?"),
    "unknown key of a fault": (FAULT + "node = [1]", "unknown key 'fault[0].node'; did you mean 'fault[0].nodes'?"),
    "type": ('[load]\nrate_per_s = "many"', "'load.rate_per_s' must be a number"),
    "both lengths": ("requests = 5", "duration_s = 10 and requests = 5 are both given; give one"),
    "negative rate": ("[load]\nrate_per_s = -1", "load.rate_per_s = -1.0: must be at least 0"),
    "no rate": ("[load]\nrate_per_s = 0", "load.rate_per_s = 0.0: must be above 0"),
    "infinite": ("[aggregator]\noverhead_s = inf", "'aggregator.overhead_s' must be a finite number, not inf"),
    "arrivals": ('[load]\narrivals = "poison"', "load.arrivals = 'poison': unknown; did you mean 'poisson'?"),
    "policy": ("[policy]\ndeadline_s = 0.0", "s.toml: policy.deadline_s = 0.0"),
    "policy key": ("[policy]\ndeadlin_s = 1.0", "unknown key 'policy.deadlin_s'; did you mean 'policy.deadline_s'?"),
    "probability": ("[link]\np_loss = 1.5", "nodes.link.p_loss = 1.5: must be between 0 and 1"),
    "half a channel": ("[link]\ngood_s = 5", "good_s and bad_s go together"),
    "half of churn": ("[nodes]\nmtbf_s = 5", "mtbf_s and mttr_s go together"),
    "two speeds": ("[nodes]\nservice_s = 1\nspeed_macs_per_s = 1", "speed_macs_per_s is given too; give one"),
    "empty group": ('[[group]]\nname = "g"\nnodes = []', "group[0].nodes = []: must not be empty"),
    "two groups": ('[[group]]\nname = "g"\nnodes = [1]\n' * 2, "group[1].name = 'g': give each group its own name"),
    "two access points": (
        '[[group]]\nname = "a"\nnodes = [1]\nbandwidth_bytes_per_s = 1\n[[group]]\nname = "b"\nnodes = [1]\n'
        "bandwidth_bytes_per_s = 1",
        "group[1].bandwidth_bytes_per_s = 1.0: device 1 shares that of group 'a' already",
    ),
    "unknown group": (FAULT + 'group = "g"', "fault[0].group = 'g': there is no such group"),
    "fault without a node": (FAULT, "fault[0].nodes = []: list nodes or name a group"),
    "negative node": (FAULT + "nodes = [-1]", "devices are numbered from 0"),
    "kind": (FAULT.replace("kill", "kil") + "nodes = [1]", "fault[0].kind = 'kil': unknown; did you mean 'kill'?"),
    "negative time": (FAULT.replace("1", "-1") + "nodes = [1]", "fault[0].at_s = -1.0: must be at least 0"),
    "an end that lasts": (FAULT.replace("kill", "restart") + "nodes = [1]\nfor_s = 2", "'restart' ends a fault"),
    "a delay of nothing": (FAULT.replace("kill", "delay") + "nodes = [1]", "fault[0].delay_s = 0.0"),
    "overlap": (
        FAULT + "nodes = [1]\nevery_s = 2\nfor_s = 3",
        "a repeated fault needs a shorter for_s",
    ),
    "cell": (FAULT + "nodes = [1]\ncells = [1]", "fault[0].cells = [1]: cells are numbered from 0 to 0"),
    "no cell": ("[fleet]\ncells = 0", "fleet.cells = 0: must be between 1 and 10,000"),
    "too many cells": ("[fleet]\ncells = 100_000_000", "fleet.cells = 100000000: must be between 1 and 10,000"),
    "too many clients": ("[load]\nconcurrency = 1_000_000", "load.concurrency = 1000000: must be between 1 and"),
    "too many windows": ("window_s = 1e-9", "scenario.window_s = 1e-09: must be at least 1e-06"),
    "no time to fuse": (
        "[policy]\ndeadline_s = 0.1\nfusion_budget_s = 0.2",
        "policy.fusion_budget_s = 0.2: must not be above deadline_s = 0.1",
    ),
    "nameless device": ("[[node]]\nservice_s = 1", "'node[0].device' must be the number of a device, not None"),
    "device twice": ("[[node]]\ndevice = 1\n" * 2, "'node[1].device' = 1: this device has a [[node]] table already"),
    "link": ("[[node]]\ndevice = 1\nlink = 3", "'node[0].link' must be a table"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_scenario_is_an_error_that_names_file_and_key(what: Any) -> None:
    text, message = IMPOSSIBLE[what]
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith("s.toml: ")
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_scenario_without_a_length_is_an_error() -> None:
    with pytest.raises(ConfigError, match="neither duration_s nor requests is given"):
        parse_scenario({"scenario": {"name": "s"}})


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        load_scenario(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[node]]\ndevice = 4", "node with device = 4: there is no node 4; the bundle has 0 to 3"),
        ('[[group]]\nname = "g"\nnodes = [1, 9]', "group 'g': there is no node 9"),
        (FAULT + "nodes = [7]", "fault[0]: there is no node 7"),
        ("[policy]\nquorum = 5", "policy.quorum = 5: the bundle has only 4 devices"),
    ],
)
def test_a_device_that_the_bundle_does_not_have_is_found_when_the_two_meet(text: str, message: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text).devices(4)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_a_scenario_policy_inventory_or_machine_says_what_it_means(kind: Any) -> None:
    options = [option for table in tables_of(kind) for option in table.options]
    assert options
    assert [option.key for option in options if not option.meaning] == []
