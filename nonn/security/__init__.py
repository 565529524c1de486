"""Certificates of a fleet.

``authority`` issues and revokes them, ``issued`` records what it has issued, ``tls`` loads them, ``handshake`` explains
refusals.
"""

__all__: list[str] = []
