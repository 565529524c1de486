"""The aggregator: asks the devices, fuses their replies, and reports the expected accuracy of the answer.

::

    inventory    which node runs which student, and where             (a TOML file)
    policy/      which nodes to ask, how long to wait, hedging        (pure logic, injected time)
    states       outcomes to the policy, changes to the observers     (NodeStates)
    fanout       one request to many nodes
    streaming    a channel to a node whose small requests share one stream
    metadata     what a node states about itself, with a limit of its size
    reply        the outcome of asking one node, checked
    screening    devices that contradict the others are left out
    service      ask → learn → fuse                                   (Aggregator)
    solver       fusion heads outside of the event loop
    missing      why nodes are missing from an answer
    probing      requests of the aggregator itself                    (Prober)
    batching     dynamic batching across clients
    pacing       the rules that pace its fan-outs                     (pure logic, injected time)
    queueing     its queue and timer
    joined       joins the answers to the pieces of a large request
    server       the cluster as one model of the Open Inference Protocol
    stalls       a clock that stands still while the process does not run
    events       what observers receive: metrics, traces, drift alarm, fault log

    http/        inference over HTTP
    membership/  nodes that join and leave at run time: leases, certificates, dial-out
    monitoring/  metrics, drift alarm, dashboard
    sensing/     streams of nodes that sense, and the answers of their windows
"""

__all__: list[str] = []
