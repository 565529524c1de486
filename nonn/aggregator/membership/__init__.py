"""Nodes that join and leave at run time.

``leases`` decides which student a node gets (pure logic, injected time), ``servicer`` is the service with which nodes
join, ``dial_out`` serves nodes that cannot be called, ``credentials`` has TLS channels, rotation and revocation,
``options`` has the options of ``nonn serve`` for all of this.
"""

__all__: list[str] = []
