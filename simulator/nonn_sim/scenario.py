"""A scenario: devices, links, load and faults, as frozen typed objects.

One file drives the simulator and, with ``--live``, a real cluster; ``nonn_sim.scenario_file`` reads it.

::

    [scenario]                      [load]
    name = "kitchen"                rate_per_s = 50
    duration_s = 60
                                    [[fault]]
    [nodes]                         at_s = 20
    speed_macs_per_s = 5e8          kind = "stop"
                                    nodes = [3]
    [link]                          for_s = 10
    latency_s = 0.002

``[nodes]`` holds for every device, a ``[[node]]`` table with ``device = i`` for one; ``[link]`` for every link. How
many devices there are is the bundle's business, so a device that does not exist is found when the two meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nonn.aggregator.policy import PolicyConfig
from nonn.errors import ConfigError

__all__ = [
    "FAULT_ENDS",
    "AggregatorConfig",
    "Fault",
    "FleetConfig",
    "Group",
    "LinkConfig",
    "LoadConfig",
    "NodeConfig",
    "RunConfig",
    "Scenario",
]

# What a fault does → what ends it. Both may stand in a schedule and in a fault log.
FAULT_ENDS: Mapping[str, str] = {
    "kill": "restart",  # the process is gone: connections are refused, its work is lost
    "stop": "resume",  # the process is frozen: silence, and its work goes on afterwards
    "off": "on",  # no power or out of range: silence, its work is lost
    "partition": "reconnect",  # the network says no: connections are refused, the process knows nothing
    "corrupt": "clean",  # replies arrive in time and cannot be used
    "delay": "undelay",  # every exchange takes delay_s longer
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, and from which seed. Exactly one of duration_s and requests is given."""

    name: str
    seed: int = 0
    duration_s: float = 0.0  # requests arrive for so long
    requests: int = 0  # so many arrive
    window_s: float = 0.0  # width of a window of accuracy over time; 0 is a twentieth of the run


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """What clients do."""

    arrivals: str = "poisson"  # poisson | fixed | closed: clients that each wait for their answer before they ask again
    rate_per_s: float = 10.0  # poisson, fixed: requests per second, over all cells
    concurrency: int = 1  # closed: clients
    batch: int = 1  # samples in one request
    timeout_s: float = 10.0  # a client's own deadline


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """What a request costs beside the devices."""

    overhead_s: float = 0.0  # client to aggregator and back, and fusing
    per_node_s: float = 0.0  # for each node that is asked: it serialises for them one after another


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """The link of a device. Loss is of whole exchanges: what is lost is silent until the deadline.

    With ``good_s`` and ``bad_s`` the link is a Gilbert–Elliott channel: good and bad periods of exponential length
    with these means, ``p_loss`` in the good ones and ``p_loss_bad`` in the bad ones.

    Source: Gilbert 1960, Elliott 1963 (Bell System Technical Journal), in continuous time.
    """

    latency_s: float = 0.0  # each way
    jitter_s: float = 0.0  # mean of an exponential delay on top, each way
    bandwidth_bytes_per_s: float = 0.0  # 0 is no limit
    p_loss: float = 0.0
    p_loss_bad: float = 1.0
    good_s: float = 0.0  # mean length of a good period; 0 is a link without bad ones
    bad_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """One device. Exactly one of speed_macs_per_s and service_s is above 0."""

    speed_macs_per_s: float = 1e9  # a guess for a small single-board computer on one thread; measure yours
    service_s: float = 0.0  # time of one inference, in place of the speed
    service_cv: float = 0.0  # standard deviation over mean of that time (log-normal); 0 is constant
    mtbf_s: float = 0.0  # mean time up, exponential; 0 never fails
    mttr_s: float = 0.0  # mean time down, exponential
    restart_s: float = 0.0  # from the end of a kill to ready
    battery_j: float = 0.0  # 0 is mains
    joule_per_mac: float = 0.0
    joule_per_byte: float = 0.0  # of requests and replies
    idle_w: float = 0.0  # while it is on
    link: LinkConfig = field(default_factory=LinkConfig)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Devices that share a fate: an access point, a battery, a person who leaves with all of them."""

    name: str
    nodes: tuple[int, ...]
    mtbf_s: float = 0.0  # mean time until all of them go off together; 0 never
    mttr_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happens at a given time to given devices."""

    at_s: float
    kind: str
    nodes: tuple[int, ...] = ()
    group: str = ""
    cells: tuple[int, ...] = ()  # of a fleet; none is all of them
    for_s: float = 0.0  # 0 lasts until something ends it
    every_s: float = 0.0  # again and again; 0 is once
    delay_s: float = 0.0  # delay


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """Cells of N devices, each with its own aggregator and copy of the bundle, under one front tier."""

    cells: int = 1


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A whole scenario file, checked.

    Attributes:
        source: name of the file, for messages.
        overrides: device → the devices' settings that differ from ``nodes``.
    """

    source: str
    scenario: RunConfig
    load: LoadConfig
    policy: PolicyConfig
    aggregator: AggregatorConfig
    fleet: FleetConfig
    nodes: NodeConfig
    overrides: Mapping[int, NodeConfig]
    groups: tuple[Group, ...]
    faults: tuple[Fault, ...]

    def devices(self, num_devices: int) -> tuple[NodeConfig, ...]:
        """The settings of each device [N].

        Raises:
            ConfigError: the file names a device that the bundle does not have, or a quorum that it cannot reach.
        """
        named: list[tuple[str, tuple[int, ...]]] = [(f"node with device = {i}", (i,)) for i in self.overrides]
        named += [(f"group '{group.name}'", group.nodes) for group in self.groups]
        named += [(f"fault[{index}]", fault.nodes) for index, fault in enumerate(self.faults)]
        for where, nodes in named:
            for node in nodes:
                if not node < num_devices:
                    raise ConfigError(
                        f"{self.source}: {where}: there is no node {node}; the bundle has 0 to {num_devices - 1}"
                    )
        if self.policy.quorum > num_devices:
            raise ConfigError(
                f"{self.source}: policy.quorum = {self.policy.quorum}: the bundle has only {num_devices} devices"
            )
        return tuple(self.overrides.get(i, self.nodes) for i in range(num_devices))

    def targets(self, fault: Fault) -> tuple[int, ...]:
        """The devices that a fault is of, ascending."""
        grouped = next((group.nodes for group in self.groups if group.name == fault.group), ())
        return tuple(sorted({*fault.nodes, *grouped}))
