"""The aggregator: asks the devices, fuses their replies, and says how accurate the answer is.

::

    inventory    which node runs which student, and where             (a TOML file)
    policy/      which nodes to ask, how long to wait, hedging        (pure logic, injected time)
    fanout       one request to many nodes                            (gRPC; reply: each is checked)
    service      ask → learn → fuse                                   (Aggregator)
    solver       fusion heads outside of the event loop
    missing      why nodes are missing from an answer
    batching     dynamic batching across clients                      (pacing: its rules; queueing: what waits)
    server       all of it as one model of the Open Inference Protocol

    membership/  nodes that join and leave at run time: leases, certificates, dialling out
    monitoring/  events, metrics, drift alarm, dashboard, traces
"""

__all__: list[str] = []
