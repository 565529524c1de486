"""Small policies for tests, and nodes that answer them or do not."""

from __future__ import annotations

from typing import Any

from nonn.aggregator.policy import Policy, PolicyConfig

NODES = ("a", "b", "c")
ONE_EACH = {"a": 0, "b": 1, "c": 2}
# a alone is poor, b and c are replicas of one part: either is worth ten points, the second of them one.
TABLE = [0.0, 0.7, 0.6, 0.8, 0.6, 0.8, 0.61, 0.81]
PAIR = {"a": 0, "a2": 0, "b": 1}


def policy_of(nodes: Any = ONE_EACH, accuracy: Any = TABLE, **config: Any) -> Any:
    return Policy(nodes, PolicyConfig(**config), accuracy)


def silent(policy: Policy, node: str, now: float, waited_s: float = 1.0) -> None:
    policy.nodes[node].pending += 1
    policy.on_failure(node, waited_s, now, silent=True)


def refused(policy: Policy, node: str, now: float) -> None:
    policy.nodes[node].pending += 1
    policy.on_failure(node, 0.0, now)


def practise(policy: Policy, node: str, latencies_s: Any, now: float = 0.0) -> None:
    """The node answers requests with these latencies."""
    for latency_s in latencies_s:
        policy.nodes[node].pending += 1
        policy.on_success(node, latency_s, now)
