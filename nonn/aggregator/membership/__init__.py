"""Nodes that join and leave at run time.

``leases`` decides which student a node gets (pure logic, injected time), ``servicer`` is the service by which nodes
join, ``dial_out`` serves nodes that cannot be called, ``credentials`` holds TLS channels, rotation and revocation,
``options`` the options of ``nonn serve`` for all of this.
"""

__all__: list[str] = []
