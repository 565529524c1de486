"""What types cannot say about a scenario: signs, ranges, and what must go together."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from nonn.errors import ConfigError
from nonn_sim.scenario import FAULT_ENDS, Group, NodeConfig, Scenario

ARRIVALS = ("poisson", "fixed", "closed")
# A cell takes 5 kB a device, a waiting client as much: beyond these it is memory that ends a run.
MAX_CELLS, MAX_CONCURRENCY = 10_000, 100_000
MIN_WINDOW_S = 1e-6


def check(scenario: Scenario) -> None:
    """Checks everything that needs no bundle.

    Raises:
        ConfigError: names file, key, value and what it may be.
    """
    run, load = scenario.scenario, scenario.load

    def need(condition: bool, key: str, value: Any, rule: str) -> None:
        if not condition:
            raise ConfigError(f"{scenario.source}: {key} = {value!r}: {rule}")

    def not_negative(thing: Any, prefix: str) -> None:
        for spec in dataclasses.fields(thing):
            value = getattr(thing, spec.name)
            if type(value) in (int, float):
                need(value >= 0, prefix + spec.name, value, "must be a number of at least 0")

    for name in ("scenario", "load", "aggregator", "fleet"):
        not_negative(getattr(scenario, name), f"{name}.")
    need(bool(run.name), "scenario.name", run.name, "give the scenario a name")
    if bool(run.duration_s) == bool(run.requests):
        both = f"duration_s = {run.duration_s:g} and requests = {run.requests} are both given" if run.requests else ""
        raise ConfigError(
            f"{scenario.source}: [scenario] {both or 'neither duration_s nor requests is given'}; give one of the two"
        )
    need(load.arrivals in ARRIVALS, "load.arrivals", load.arrivals, _nearest(load.arrivals, ARRIVALS))
    need(load.arrivals == "closed" or load.rate_per_s > 0, "load.rate_per_s", load.rate_per_s, "must be above 0")
    need(
        not run.window_s or run.window_s >= MIN_WINDOW_S,
        "scenario.window_s",
        run.window_s,
        f"must be at least {MIN_WINDOW_S:g}, or 0 for a twentieth of the run",
    )
    need(
        1 <= load.concurrency <= MAX_CONCURRENCY,
        "load.concurrency",
        load.concurrency,
        f"must lie between 1 and {MAX_CONCURRENCY:,}",
    )
    need(load.batch >= 1, "load.batch", load.batch, "must be at least 1")
    need(load.timeout_s > 0, "load.timeout_s", load.timeout_s, "must be above 0")
    cells = scenario.fleet.cells
    need(1 <= cells <= MAX_CELLS, "fleet.cells", cells, f"must lie between 1 and {MAX_CELLS:,}")
    devices = [("nodes", scenario.nodes)]
    devices += [(f"node with device = {device}", node) for device, node in scenario.overrides.items()]
    for name, node in devices:
        not_negative(node, f"{name}: ")
        not_negative(node.link, f"{name}: link.")
        _check_node(node, name, need)
    _check_groups(scenario.groups, need, not_negative)
    _check_faults(scenario, need, not_negative)


def _check_node(node: NodeConfig, name: str, need: Any) -> None:
    """One device and its link."""
    both = node.speed_macs_per_s > 0 and node.service_s > 0
    need(not both, f"{name}: service_s", node.service_s, "speed_macs_per_s is given too; give one of the two")
    need(node.speed_macs_per_s > 0 or node.service_s > 0, f"{name}: speed_macs_per_s", 0.0, "must be above 0")
    need(bool(node.mtbf_s) == bool(node.mttr_s), f"{name}: mtbf_s", node.mtbf_s, "mtbf_s and mttr_s go together")
    link = node.link
    for key in ("p_loss", "p_loss_bad"):
        need(getattr(link, key) <= 1, f"{name}: link.{key}", getattr(link, key), "must be a probability")
    need(bool(link.good_s) == bool(link.bad_s), f"{name}: link.good_s", link.good_s, "good_s and bad_s go together")


def _check_groups(groups: Iterable[Group], need: Any, not_negative: Any) -> None:
    """Groups of somebody, each once."""
    seen: set[str] = set()
    for index, group in enumerate(groups):
        key = f"group[{index}]"
        not_negative(group, f"{key}.")
        need(bool(group.name) and group.name not in seen, f"{key}.name", group.name, "give each group its own name")
        seen.add(group.name)
        need(bool(group.nodes), f"{key}.nodes", list(group.nodes), f"group '{group.name}' is a group of nobody")
        need(min(group.nodes) >= 0, f"{key}.nodes", list(group.nodes), "devices are numbered from 0")
        need(len(set(group.nodes)) == len(group.nodes), f"{key}.nodes", list(group.nodes), "a device is named twice")
        need(bool(group.mtbf_s) == bool(group.mttr_s), f"{key}.mtbf_s", group.mtbf_s, "mtbf_s and mttr_s go together")


def _check_faults(scenario: Scenario, need: Any, not_negative: Any) -> None:
    """Faults of known kinds that happen to somebody."""
    kinds, groups = (*FAULT_ENDS, *FAULT_ENDS.values()), [group.name for group in scenario.groups]
    for index, fault in enumerate(scenario.faults):
        key = f"fault[{index}]"
        not_negative(fault, f"{key}.")
        need(fault.kind in kinds, f"{key}.kind", fault.kind, f"unknown; {_nearest(fault.kind, kinds)}")
        known = not fault.group or fault.group in groups
        need(known, f"{key}.group", fault.group, f"there is no such group; {_nearest(fault.group, groups)}")
        need(bool(scenario.targets(fault)), f"{key}.nodes", list(fault.nodes), "name nodes or a group")
        need(min(scenario.targets(fault)) >= 0, f"{key}.nodes", list(fault.nodes), "devices are numbered from 0")
        cells = scenario.fleet.cells
        inside = all(0 <= cell < cells for cell in fault.cells)
        need(inside, f"{key}.cells", list(fault.cells), f"cells are numbered from 0 to {cells - 1}")
        lasts = fault.kind in FAULT_ENDS
        need(lasts or not fault.for_s, f"{key}.for_s", fault.for_s, f"'{fault.kind}' ends a fault and takes no time")
        delays = fault.kind == "delay"
        need(delays == bool(fault.delay_s), f"{key}.delay_s", fault.delay_s, 'goes with kind = "delay", above 0')
        need(
            not fault.every_s or not lasts or 0 < fault.for_s < fault.every_s,
            f"{key}.every_s",
            fault.every_s,
            "a fault that comes again needs a for_s that is shorter",
        )


def _nearest(value: str, choices: Iterable[str]) -> str:
    """A hint at what was meant."""
    near = difflib.get_close_matches(value, choices, n=1)
    return f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(choices) or '(there is none)'}"
