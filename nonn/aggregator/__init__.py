"""The aggregator: asks the devices, fuses their replies, and reports the expected accuracy of the answer.

::

    inventory    which node runs which student, and where             (a TOML file)
    policy/      which nodes to ask, how long to wait, hedging        (pure logic, injected time)
    fanout       one request to many nodes                            (gRPC; reply: checks each one)
    service      ask → learn → fuse                                   (Aggregator)
    states       outcomes to the policy, changes to the observers     (NodeStates)
    probing      requests of the aggregator itself                    (Prober)
    solver       fusion heads outside of the event loop
    missing      why nodes are missing from an answer
    batching     dynamic batching across clients                      (pacing: its rules; queueing: its queue)
    server       the cluster as one model of the Open Inference Protocol

    membership/  nodes that join and leave at run time: leases, certificates, dial-out
    monitoring/  events, metrics, drift alarm, dashboard, traces
"""

__all__: list[str] = []
