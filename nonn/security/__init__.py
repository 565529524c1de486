"""Certificates of a fleet.

``authority`` issues and revokes them, ``certificate`` has their fields, ``issued`` records what it has issued, ``tls``
loads them, ``handshake`` explains refusals, ``pairing`` has the code with which a new device gets one.
"""

__all__: list[str] = []
