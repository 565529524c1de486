"""The aggregator: asks the devices, fuses whatever they send back, and says how good that is.

::

    inventory   which node runs which student, and where           (a TOML file)
    policy      whom to ask, how long to wait, whom to leave out   (pure logic, injected time)
    session     the same for one request: hedging, early fusion    (pure logic; latencies: what it goes by)
    fanout      one request to many nodes                          (gRPC; reply: each is checked)
    service     plan → ask → record → fuse                         (Aggregator; solver: heads beside the event loop)
    batching    requests of several clients travel together
    server      all of it behind the Open Inference Protocol

Nodes that come and go, and who may::

    membership  leases, and which student a node gets              (pure logic, injected time)
    fleet       the service by which nodes join                    (work: those that dial out)
    secure      TLS channels, rotation, revocation
    joining     the options of ``nonn serve`` for all of this

Whoever watches::

    events      what observers are told
    monitor     the state of the cluster                           (state, timeline, faultlog)
    drift       names a node that answers but has gone bad         (pure logic; baseline: what it compares with)
    metrics     Prometheus; dashboard: HTTP; observing: the options for all of this
"""

__all__: list[str] = []
