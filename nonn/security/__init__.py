"""Certificates: ``authority`` issues and revokes them, ``tls`` loads them, ``handshake`` explains refusals."""

__all__: list[str] = []
