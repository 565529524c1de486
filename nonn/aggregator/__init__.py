"""The aggregator: asks the devices, fuses whatever they send back, and says how good that is.

::

    inventory   which node runs which student, and where          (a TOML file)
    policy      whom to ask, how long to wait, whom to leave out   (pure logic, injected time)
    fanout      one request to many nodes, every reply checked     (gRPC)
    service     plan → ask → record → fuse                         (Aggregator)
    server      the same behind the Open Inference Protocol
"""

__all__: list[str] = []
