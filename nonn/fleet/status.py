"""What ``nonn fleet status`` reports of one served bundle and its nodes."""

from __future__ import annotations

from typing import Any

from nonn.fleet.served import ServedBundle

__all__ = ["bundle_status", "node_status"]


def bundle_status(of: ServedBundle, *, served: bool) -> dict[str, Any]:
    """One bundle of ``status``."""
    return {
        "bundle": of.bundle.hash,
        "experiment": of.bundle.manifest.experiment,
        "served": served,
        "students": len(set(of.up().values())),
        "devices": of.bundle.num_devices,
        "accuracy": of.accuracy(),
        "accuracy_of_all": of.aggregator.policy.accuracy[of.bundle.accuracies.full],
    }


def node_status(of: ServedBundle) -> list[dict[str, Any]]:
    """The nodes of ``status`` that have a lease of one bundle."""
    policy, up, nodes = of.aggregator.policy, of.up(), []
    for lease in of.servicer.membership.leases.values():
        node = lease.request
        known = node.node in policy.nodes
        nodes.append(
            {
                "node": node.node,
                "bundle": of.bundle.hash,
                "student": lease.student,
                "state": "up" if node.node in up else policy.state(node.node) if known else "fetching",
                "address": "dials out" if node.dials_out else node.address,
                "version": node.version,
                "runtime": node.runtime,
                "machine": node.machine,
                "rss_bytes": lease.rss_bytes,
            }
        )
    return nodes
