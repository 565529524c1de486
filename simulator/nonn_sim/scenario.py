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

``[nodes]`` applies to every device, a ``[[node]]`` table with ``device = i`` to one; ``[link]`` applies to every link.
The bundle has the number of devices, so an unknown device is an error only when scenario and bundle are combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from nonn.aggregator.policy import PolicyConfig
from nonn.errors import ConfigError
from nonn.toml.constraints import (
    Choice,
    Count,
    NotEmpty,
    NotNegative,
    Positive,
    Range,
    Rules,
    Share,
    Whole,
)

__all__ = [
    "FAULT_ENDS",
    "FAULT_KINDS",
    "AggregatorConfig",
    "FleetConfig",
    "Group",
    "LinkConfig",
    "LoadConfig",
    "NodeConfig",
    "RunConfig",
    "Scenario",
    "ScheduledFault",
]

# Fault → event that ends it. Schedules and fault logs may contain both.
FAULT_ENDS: Mapping[str, str] = {
    "kill": "restart",  # the process is gone: connections are refused, its work is lost
    "stop": "resume",  # the process is frozen: silence, and its work continues afterwards
    "off": "on",  # no power or out of range: silence, its work is lost
    "partition": "reconnect",  # the network fails: connections are refused, the process keeps running
    "corrupt": "clean",  # replies arrive in time but are unusable
    "delay": "undelay",  # every exchange takes delay_s longer
}


FAULT_KINDS = (*FAULT_ENDS, *FAULT_ENDS.values())

# A cell takes 5 kB per device, and so does a waiting client: beyond these limits a run exceeds memory.
MAX_CELLS, MAX_CONCURRENCY = 10_000, 100_000
MIN_WINDOW_S = 1e-6
MAX_EVENTS = 5_000_000  # starts and ends of faults in a run: some minutes and 2 GB

Device = Annotated[int, Range(ge=0, why="devices are numbered from 0")]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length and seed. Exactly one of duration_s and requests is given."""

    name: Annotated[str, NotEmpty(), "name of the scenario"]
    seed: Annotated[Whole, "seed of all random numbers"] = 0
    duration_s: Annotated[NotNegative, "time during which requests arrive"] = 0.0
    requests: Annotated[Whole, "number of requests"] = 0
    window_s: Annotated[NotNegative, "width of a window of accuracy over time; 0 is a twentieth of the run"] = 0.0
    levels: Annotated[tuple[Share, ...], "accuracies: how often a run reaches them, and when it first does not"] = ()

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        lengths = f"duration_s = {self.duration_s:g} and requests = {self.requests} are both given"
        yield "", not (self.duration_s and self.requests), f"{lengths}; give one of the two"
        yield "", self.duration_s or self.requests, "neither duration_s nor requests is given; give one of the two"
        wide = not self.window_s or self.window_s >= MIN_WINDOW_S
        yield "window_s", wide, f"must be at least {MIN_WINDOW_S:g}, or 0 for a twentieth of the run"


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """Requests of the clients."""

    arrivals: Annotated[
        Literal["poisson", "fixed", "closed"], "closed: each client waits for its answer before its next request"
    ] = "poisson"
    rate_per_s: Annotated[NotNegative, "poisson, fixed: requests per second, over all cells; above 0"] = 10.0
    concurrency: Annotated[int, Range(ge=1, le=MAX_CONCURRENCY), "closed: number of clients"] = 1
    daily_swing: Annotated[
        Share, "poisson: share by which the rate rises and falls over a day, as a sine around rate_per_s"
    ] = 0.0
    day_s: Annotated[Positive, "length of that day"] = 86_400.0
    peak_at_s: Annotated[NotNegative, "time of the highest rate in a day"] = 43_200.0
    retries: Annotated[Whole, "times that a client sends a request again that got no answer"] = 0
    retry_after_s: Annotated[NotNegative, "time between the failure and the next attempt"] = 0.0
    batch: Annotated[Count, "samples in one request"] = 1
    timeout_s: Annotated[Positive, "deadline of a client"] = 10.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "rate_per_s", self.arrivals == "closed" or self.rate_per_s, "must be above 0"
        yield "daily_swing", self.arrivals == "poisson" or not self.daily_swing, 'goes with arrivals = "poisson"'
        yield "retry_after_s", self.retries or not self.retry_after_s, "goes with retries"


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """The aggregators of a cell: the cost of a request without the devices, and their failures.

    A request that finds every aggregator down is refused; otherwise one that is up serves it. Those under way when an
    aggregator fails are not lost, and the one that takes over knows the states of the nodes: both are small compared
    with an outage of seconds.
    """

    overhead_s: Annotated[NotNegative, "time from client to aggregator and back, and of fusion"] = 0.0
    per_node_s: Annotated[NotNegative, "time for each node of a request: messages are serialised in sequence"] = 0.0
    count: Annotated[Count, "aggregators of a cell, any of which can serve a request"] = 1
    mtbf_s: Annotated[NotNegative, "mean time up of an aggregator, exponential; 0 never fails"] = 0.0
    mttr_s: Annotated[NotNegative, "mean time down, exponential"] = 0.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "mtbf_s", bool(self.mtbf_s) == bool(self.mttr_s), "mtbf_s and mttr_s go together"


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """The link of a device. Whole exchanges are lost: a lost exchange is silent until the deadline.

    With ``good_s`` and ``bad_s`` the link is a Gilbert–Elliott channel: good and bad periods of exponential length
    with these means, ``p_loss`` in the good ones and ``p_loss_bad`` in the bad ones.

    Source: Gilbert 1960, Elliott 1963 (Bell System Technical Journal), in continuous time.
    """

    latency_s: Annotated[NotNegative, "each way"] = 0.0
    jitter_s: Annotated[NotNegative, "mean of an exponential delay added to latency_s, each way"] = 0.0
    bandwidth_bytes_per_s: Annotated[NotNegative, "0 is no limit"] = 0.0
    p_loss: Annotated[Share, "probability that an exchange is lost"] = 0.0
    p_loss_bad: Annotated[Share, "the same in a bad period"] = 1.0
    good_s: Annotated[NotNegative, "mean length of a good period; 0: no bad periods"] = 0.0
    bad_s: Annotated[NotNegative, "mean length of a bad period"] = 0.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "good_s", bool(self.good_s) == bool(self.bad_s), "good_s and bad_s go together"


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """One device. Exactly one of speed_macs_per_s and service_s is above 0."""

    speed_macs_per_s: Annotated[
        NotNegative, "speed; the default is an estimate for a small single-board computer on one thread: measure yours"
    ] = 1e9
    service_s: Annotated[NotNegative, "time of one inference, instead of the speed"] = 0.0
    service_cv: Annotated[NotNegative, "standard deviation over mean of that time (log-normal); 0 is constant"] = 0.0
    mtbf_s: Annotated[NotNegative, "mean time up; 0 never fails"] = 0.0
    mtbf_shape: Annotated[
        Positive, "shape of the Weibull distribution of that time: 1 is exponential, above 1 it wears out"
    ] = 1.0
    mttr_s: Annotated[NotNegative, "mean time of a repair"] = 0.0
    mttr_cv: Annotated[
        NotNegative, "standard deviation over mean of that time (log-normal); 0 is exponential instead"
    ] = 0.0
    restart_s: Annotated[NotNegative, "time from the end of a kill until ready"] = 0.0
    battery_j: Annotated[NotNegative, "energy of the battery; 0 is mains"] = 0.0
    joule_per_mac: Annotated[NotNegative, "energy of a multiply-accumulate"] = 0.0
    joule_per_byte: Annotated[NotNegative, "energy of a byte of requests and replies"] = 0.0
    idle_w: Annotated[NotNegative, "power while it is on"] = 0.0
    link: LinkConfig = field(default_factory=LinkConfig)

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        both = self.speed_macs_per_s and self.service_s
        yield "service_s", not both, "speed_macs_per_s is given too; give one of the two"
        yield "speed_macs_per_s", self.speed_macs_per_s or self.service_s, "must be above 0"
        yield "mtbf_s", bool(self.mtbf_s) == bool(self.mttr_s), "mtbf_s and mttr_s go together"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Devices that share something: they fail together, as those of one battery or person, or share an access point.

    An access point sends one message at a time, requests and replies alike, in the order in which they are ready. A
    message whose turn does not come before its deadline is dropped. Collisions and repetitions are not simulated: the
    rate is that which remains for payload.
    """

    name: Annotated[str, NotEmpty(), "unique name of the group"]
    nodes: Annotated[tuple[Device, ...], NotEmpty(), "its devices"]
    mtbf_s: Annotated[NotNegative, "mean time until all of them go off together; 0 never"] = 0.0
    mttr_s: Annotated[NotNegative, "mean time until they are on again"] = 0.0
    bandwidth_bytes_per_s: Annotated[
        NotNegative, "rate of their access point, which all messages of these devices share; 0 is no limit"
    ] = 0.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "nodes", len(set(self.nodes)) == len(self.nodes), "a device is listed twice"
        yield "mtbf_s", bool(self.mtbf_s) == bool(self.mttr_s), "mtbf_s and mttr_s go together"


@dataclass(frozen=True, kw_only=True)
class ScheduledFault:
    """An event that happens at a given time to given devices."""

    at_s: Annotated[NotNegative, "time from the start"]
    kind: Annotated[str, Choice("nonn_sim.scenario:FAULT_KINDS"), "a fault, or the end of one"]
    nodes: Annotated[tuple[Device, ...], "devices"] = ()
    group: Annotated[str, "name of a group, in addition to nodes"] = ""
    cells: Annotated[tuple[int, ...], "cells of a fleet; empty is all of them"] = ()
    for_s: Annotated[NotNegative, "duration; 0: until another event ends it"] = 0.0
    every_s: Annotated[NotNegative, "period of a repeated fault; 0 is once"] = 0.0
    delay_s: Annotated[NotNegative, "kind = delay: added to every exchange"] = 0.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "nodes", self.nodes or self.group, "list nodes or name a group"
        lasts = self.kind in FAULT_ENDS
        yield "for_s", lasts or not self.for_s, f"'{self.kind}' ends a fault and takes no time"
        yield "delay_s", (self.kind == "delay") == bool(self.delay_s), 'goes with kind = "delay", above 0'
        shorter = 0 < self.for_s < self.every_s
        yield "every_s", not self.every_s or not lasts or shorter, "a repeated fault needs a shorter for_s"


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """Cells of N devices, each with its own aggregator and copy of the bundle, under one front tier."""

    cells: Annotated[int, Range(ge=1, le=MAX_CELLS), "number of cells"] = 1
    replicas: Annotated[
        Count, "devices that run each student: device i runs student i modulo N; the policy asks one and hedges"
    ] = 1
    repair_crews: Annotated[
        Whole, "devices and groups that can be repaired at the same time, over all cells; 0 is any number"
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A whole scenario file, checked.

    Attributes:
        source: name of the file, for messages.
        overrides: device → its settings, if they differ from ``nodes``.
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
    faults: tuple[ScheduledFault, ...]

    def devices(self, num_students: int) -> tuple[NodeConfig, ...]:
        """The settings of each device: as many as students, times the replicas of each.

        Raises:
            ConfigError: the file has a device that the bundle does not have, a quorum that it cannot reach, or faults
                that are too frequent to simulate.
        """
        num_devices = num_students * self.fleet.replicas
        named: list[tuple[str, tuple[int, ...]]] = [(f"node with device = {i}", (i,)) for i in self.overrides]
        named += [(f"group '{group.name}'", group.nodes) for group in self.groups]
        named += [(f"fault[{index}]", fault.nodes) for index, fault in enumerate(self.faults)]
        for where, nodes in named:
            for node in nodes:
                if not node < num_devices:
                    raise ConfigError(
                        f"{self.source}: {where}: there is no node {node}; the bundle has 0 to {num_devices - 1}"
                        + (f", with {self.fleet.replicas} replicas of each student" if self.fleet.replicas > 1 else "")
                    )
        if self.policy.quorum > num_students:
            raise ConfigError(
                f"{self.source}: policy.quorum = {self.policy.quorum}: the bundle has only {num_students} devices"
            )
        settings = tuple(self.overrides.get(i, self.nodes) for i in range(num_devices))
        self._check_events(settings)
        return settings

    def _check_events(self, nodes: Sequence[NodeConfig]) -> None:
        """Refuses faults that are so frequent that a run would not end."""
        run, load = self.scenario, self.load
        rate = load.concurrency / self.policy.deadline_s if load.arrivals == "closed" else load.rate_per_s
        length_s = run.duration_s or run.requests / rate
        rates = [
            (f"group '{group.name}': mtbf_s", group.mtbf_s, group.mttr_s, len(group.nodes)) for group in self.groups
        ]
        aggregator = self.aggregator
        rates.append(("aggregator.mtbf_s", aggregator.mtbf_s, aggregator.mttr_s, aggregator.count))
        rates += [(f"device {i}: mtbf_s", node.mtbf_s, node.mttr_s, 1) for i, node in enumerate(nodes)]
        rates += [
            (f"fault[{i}]: every_s", fault.every_s, 0.0, len(self.targets(fault)))
            for i, fault in enumerate(self.faults)
        ]
        events = {
            where: 2 * length_s / (up_s + down_s) * devices * self.fleet.cells
            for where, up_s, down_s, devices in rates
            if up_s
        }
        if sum(events.values()) > MAX_EVENTS:
            most = max(events, key=events.__getitem__)
            raise ConfigError(
                f"{self.source}: {most} means about {events[most]:.2g} faults and their ends in {length_s:.4g} s; "
                f"a run simulates at most {MAX_EVENTS:,}: make them rarer, or the run shorter"
            )

    def targets(self, fault: ScheduledFault) -> tuple[int, ...]:
        """The devices that a fault affects, ascending."""
        grouped = next((group.nodes for group in self.groups if group.name == fault.group), ())
        return tuple(sorted({*fault.nodes, *grouped}))
