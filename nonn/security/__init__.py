"""Certificates: ``authority`` issues and revokes them, ``tls`` loads them, ``handshake`` explains why one is refused."""

__all__: list[str] = []
