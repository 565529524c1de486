"""Which nodes to ask and how long to wait: pure logic with injected time, the same live and in the simulator.

::

    config      options of the operator                        (PolicyConfig)
    file        the same as a TOML file
    policy      the state of every node, and new sessions      (Policy)
    session     one request: hedging, early fusion, its end    (Session; depends on a policy only by a protocol)
    roster      the record of each node, and which are asked   (NodeRecord, Roster)
    breaker     circuit breaker of one node                    (Breaker)
    latencies   last latencies of one node                     (Latencies)
    pace        time that a node takes for each further sample
"""

from nonn.aggregator.policy.config import PolicyConfig
from nonn.aggregator.policy.policy import Policy

__all__ = ["Policy", "PolicyConfig"]
