"""What an aggregator reports to ``nonn fleet``: the status of its bundles and nodes, and messages about each step."""

from __future__ import annotations

from dataclasses import dataclass, field

from nonn.documents import OPTIONAL, Share, Whole
from nonn.fleet.served import ServedBundle

__all__ = ["BundleStatus", "FleetMessage", "FleetStatus", "NodeStatus", "bundle_status", "node_status"]


@dataclass(frozen=True, kw_only=True)
class BundleStatus:
    """One bundle.

    Attributes:
        bundle: its hash.
        experiment: name of its experiment.
        served: whether clients get answers of it.
        students: students that answer now.
        devices: students of the bundle.
        accuracy: accuracy of those that answer now.
        accuracy_of_all: accuracy with all devices.
    """

    bundle: str
    experiment: str
    served: bool
    students: Whole
    devices: Whole
    accuracy: Share
    accuracy_of_all: Share


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """One node; of a drained node without a lease only the first two fields are known.

    Attributes:
        node: its id.
        bundle: hash of the bundle of its lease.
        student: number of its student.
        state: up, suspect, out, unknown, fetching (it has no student yet) or drained.
        address: host:port, or "dials out".
        version: its version of nonn.
        runtime: the runtime of its student.
        machine: processor architecture.
        rss_bytes: resident memory; 0 before it has reported it.
    """

    node: str
    bundle: str | None = field(default=None, metadata=OPTIONAL)
    student: Whole | None = field(default=None, metadata=OPTIONAL)
    state: str
    address: str | None = field(default=None, metadata=OPTIONAL)
    version: str | None = field(default=None, metadata=OPTIONAL)
    runtime: str | None = field(default=None, metadata=OPTIONAL)
    machine: str | None = field(default=None, metadata=OPTIONAL)
    rss_bytes: Whole | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class FleetStatus:
    """Bundles and nodes of an aggregator.

    Attributes:
        bundles: the served bundle, then the other one during an update.
        nodes: all nodes, by id.
        previous: hash of the bundle served before; empty for none.
    """

    bundles: tuple[BundleStatus, ...]
    nodes: tuple[NodeStatus, ...]
    previous: str


@dataclass(frozen=True)
class FleetMessage:
    """A step of an update or drain.

    Attributes:
        event: move, back, switch or done.
        text: description for the operator.
        nodes: the nodes that are moved.
        served: accuracy of the served bundle.
    """

    event: str
    text: str
    nodes: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)
    served: Share | None = field(default=None, metadata=OPTIONAL)


def bundle_status(of: ServedBundle, *, served: bool) -> BundleStatus:
    """The status of one bundle."""
    return BundleStatus(
        bundle=of.bundle.hash,
        experiment=of.bundle.manifest.experiment,
        served=served,
        students=len(set(of.up().values())),
        devices=of.bundle.num_devices,
        accuracy=of.accuracy(),
        accuracy_of_all=of.aggregator.policy.accuracy[of.bundle.accuracies.full],
    )


def node_status(of: ServedBundle) -> list[NodeStatus]:
    """The status of each node that has a lease of one bundle."""
    policy, up, nodes = of.aggregator.policy, of.up(), []
    for lease in of.servicer.membership.leases.values():
        node = lease.request
        known = node.node in policy.nodes
        nodes.append(
            NodeStatus(
                node=node.node,
                bundle=of.bundle.hash,
                student=lease.student,
                state="up" if node.node in up else policy.state(node.node) if known else "fetching",
                address="dials out" if node.dials_out else node.address,
                version=node.version,
                runtime=node.runtime,
                machine=node.machine,
                rss_bytes=lease.rss_bytes,
            )
        )
    return nodes
