"""Reads scenario files strictly, so that a misspelt key or an invalid value is an error and not a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonn.aggregator.policy import PolicyConfig
from nonn.errors import ConfigError
from nonn.toml import Rules, did_you_mean, from_mapping, parse_toml
from nonn_sim.scenario import (
    AggregatorConfig,
    FleetConfig,
    Group,
    LoadConfig,
    NodeConfig,
    RunConfig,
    Scenario,
    ScheduledFault,
)

__all__ = ["load_scenario", "parse_scenario"]


@dataclass(frozen=True, kw_only=True)
class _File:
    """The file as written."""

    scenario: RunConfig
    load: LoadConfig = field(default_factory=LoadConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    link: Mapping[str, Any] = field(default_factory=dict)
    nodes: Mapping[str, Any] = field(default_factory=dict)
    node: tuple[Mapping[str, Any], ...] = ()
    group: tuple[Group, ...] = ()
    fault: tuple[ScheduledFault, ...] = ()

    def rules(self) -> Rules:
        """Rules that relate several tables."""
        names = [group.name for group in self.group]
        for index, name in enumerate(names):
            yield f"group[{index}].name", name not in names[:index], "give each group its own name"
        point: dict[int, str] = {}  # the access point of each device
        for index, group in enumerate(self.group):
            for node in group.nodes if group.bandwidth_bytes_per_s else ():
                where = f"group[{index}].bandwidth_bytes_per_s"
                yield where, node not in point, f"device {node} shares that of group '{point.get(node)}' already"
                point[node] = group.name
        for index, fault in enumerate(self.fault):
            known = not fault.group or fault.group in names
            yield f"fault[{index}].group", known, f"there is no such group; {did_you_mean(fault.group, names)}"
            inside = all(0 <= cell < self.fleet.cells for cell in fault.cells)
            yield f"fault[{index}].cells", inside, f"cells are numbered from 0 to {self.fleet.cells - 1}"


def load_scenario(path: Path) -> Scenario:
    """Reads and checks a scenario file.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is invalid; it names file and key.
    """
    tree = parse_toml(path)
    if tree and set(tree) <= {"sensing", "units", "battery"}:
        raise ConfigError(f"{path}: a scenario of nodes that sense; run it with nonn-sim sense")
    return parse_scenario(tree, source=str(path))


def parse_scenario(tree: Mapping[str, Any], source: str = "scenario") -> Scenario:
    """Builds a scenario from the parsed file.

    Args:
        tree: contents of the file.
        source: name of the file, for messages.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is impossible.
    """
    file = from_mapping(_File, tree, source=source)
    nodes = _node(file.nodes, {"link": file.link}, source, "nodes.")
    overrides: dict[int, NodeConfig] = {}
    for index, table in enumerate(file.node):
        device = table.get("device")
        if type(device) is not int or device < 0:
            raise ConfigError(f"{source}: 'node[{index}].device' must be the number of a device, not {device!r}")
        if device in overrides:
            raise ConfigError(f"{source}: 'node[{index}].device' = {device}: this device has a [[node]] table already")
        rest = {key: value for key, value in table.items() if key != "device"}
        overrides[device] = _node(rest, {"link": file.link, **file.nodes}, source, f"node[{index}].")
    return Scenario(
        source=source,
        scenario=file.scenario,
        load=file.load,
        policy=file.policy,
        aggregator=file.aggregator,
        fleet=file.fleet,
        nodes=nodes,
        overrides=overrides,
        groups=file.group,
        faults=file.fault,
    )


def _node(table: Mapping[str, Any], defaults: Mapping[str, Any], source: str, prefix: str) -> NodeConfig:
    """A device's settings over the defaults; its link over the default link, key by key."""
    if not isinstance(table.get("link", {}), Mapping):
        raise ConfigError(f"{source}: '{prefix}link' must be a table, not {table['link']!r}")
    merged: dict[str, Any] = {}
    for layer in (defaults, table):
        link = {**merged.get("link", {}), **layer.get("link", {})}
        for mine, other in (("service_s", "speed_macs_per_s"), ("speed_macs_per_s", "service_s")):
            # One replaces the other; the check rejects both in one table.
            if mine in layer and other not in layer:
                merged[other] = 0.0
        merged |= {**layer, "link": link}
    return from_mapping(NodeConfig, merged, source=source, prefix=prefix)
