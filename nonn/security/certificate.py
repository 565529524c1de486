"""X.509 certificates of a fleet: the fields that all have, what a file has, and keys as PEM."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from nonn.errors import ConfigError, CredentialsError
from nonn.security.tls import AUTHORITY, IDENTITY

__all__ = ["certificate_builder", "describe", "host_name", "key_pem", "load_certificate"]

# The clock of a device without a clock battery is minutes behind until it is synchronised.
BACKDATED = timedelta(minutes=10)


def describe(path: Path) -> dict[str, Any]:
    """Fields of a certificate.

    Args:
        path: a TLS folder, an authority's folder, or a PEM file.

    Raises:
        CredentialsError: there is no certificate.
    """
    file, certificate = load_certificate(path)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        texts = [str(name.value) for name in names]
    except x509.ExtensionNotFound:
        texts = []
    return {
        "file": str(file),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": texts,
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "serial": f"{certificate.serial_number:x}",
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }


def load_certificate(path: Path) -> tuple[Path, x509.Certificate]:
    """The certificate in a folder or PEM file, and the file; raises as ``describe`` does."""
    candidates = [path / IDENTITY, path / AUTHORITY] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
    try:
        return file, x509.load_pem_x509_certificates(file.read_bytes())[0]
    except OSError as exc:
        raise CredentialsError(f"{file}: {exc.strerror}; name a folder of nonn certs, or a PEM file") from exc
    except ValueError as exc:
        raise CredentialsError(f"{file}: contains no certificate in PEM form") from exc


def certificate_builder(
    now: datetime,
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    days: float,
    authority: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    """A builder with the fields that all certificates have."""
    if not 0 < days <= 36500:
        raise ConfigError(f"--days {days:g}: a certificate is valid for more than 0 and at most 36500 days")
    start, end = now - BACKDATED, now + timedelta(days=days)
    if authority is not None:
        # A certificate that outlives its authority would look valid but be refused.
        start, end = max(start, authority.not_valid_before_utc), min(end, authority.not_valid_after_utc)
        if end <= now:
            raise CredentialsError("the authority itself has expired; make another: nonn certs init --dir …")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def host_name(host: str) -> x509.GeneralName:
    """An IP address or a DNS name for the certificate's alternative names."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removesuffix(".").split(".")
    if not host.isascii() or not all(label and label.replace("-", "").isalnum() for label in labels):
        raise ConfigError(f"--host {host}: neither an IP address nor a DNS name (without port)")
    return x509.DNSName(host)


def key_pem(key: Any) -> bytes:
    """A private key as PEM, without a passphrase."""
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem
