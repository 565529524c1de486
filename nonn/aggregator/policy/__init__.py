"""Which nodes to ask and how long to wait: pure logic with injected time, the same live and in the simulator.

``policy`` knows the nodes, ``session`` one request (hedging, early fusion), ``latencies`` what is expected of a node,
``file`` the TOML table.
"""

from nonn.aggregator.policy.policy import Policy, PolicyConfig

__all__ = ["Policy", "PolicyConfig"]
