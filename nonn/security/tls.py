"""TLS credentials of a process, and the identity in its certificate.

A process authenticates with a folder that ``nonn certs issue`` writes::

    identity.pem   private key and certificate, in one file so that a rename replaces both at once
    ca.pem         certificate of the authority that it trusts
    revoked.json   revoked certificates of that authority

The alternative names of a certificate contain one identity, such as ``nonn://node/kitchen``. A channel expects the name
``kitchen.node.nonn.internal``, so gRPC itself refuses the certificate of any other node, whatever the address.

Files are checked for changes at most once a second: a rotated certificate is used from the next connection, a revoked
one is refused from the next call. This module needs only the base install.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from nonn.errors import ConfigError, CredentialsError, NonnError

__all__ = ["AGGREGATOR_NAME", "ROLES", "Identity", "TlsFolder", "Watched", "check_id", "fingerprint", "load_tls"]

ROLES = ("node", "aggregator", "client")
DOMAIN = "nonn.internal"  # .internal is reserved for private use: no such name exists on the Internet
# Every aggregator's certificate has this name, so a client needs no host name; it also has the aggregator's own name.
AGGREGATOR_NAME = f"aggregator.{DOMAIN}"
IDENTITY, AUTHORITY, REVOKED = "identity.pem", "ca.pem", "revoked.json"
LOOK_AGAIN_S = 1.0  # a changed file is read again after at most this time

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\s*", re.DOTALL)

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


def check_id(name: str) -> str:
    """Returns the id if it is valid in a certificate.

    Raises:
        ConfigError: it is not a DNS label.
    """
    if not _ID.fullmatch(name):
        raise ConfigError(f"id {name!r}: use 1 to 63 lower-case letters, digits and inner hyphens")
    return name


def fingerprint(pem: bytes) -> str:
    """SHA-256 of the first certificate in a PEM text, as lower-case hex.

    Raises:
        CredentialsError: the text contains no certificate.
    """
    blocks = [match[0] for match in _PEM.finditer(pem) if match[1] == b"CERTIFICATE"]
    if not blocks:
        raise CredentialsError("no certificate in PEM form")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(blocks[0].decode())).hexdigest()


@dataclass(frozen=True)
class Identity:
    """The owner of a certificate.

    Attributes:
        role: ``node``, ``aggregator`` or ``client``.
        id: unique within the role.
    """

    role: str
    id: str

    def __str__(self) -> str:
        return f"{self.role} '{self.id}'"

    @property
    def uri(self) -> str:
        """URI of the identity in the certificate."""
        return f"nonn://{self.role}/{self.id}"

    @property
    def dns_name(self) -> str:
        """The name that a channel to it expects."""
        return f"{self.id}.{self.role}.{DOMAIN}"

    @classmethod
    def from_uri(cls, uri: str) -> Identity | None:
        """The inverse of ``uri``; None for any other text."""
        match = re.fullmatch(r"nonn://([a-z]+)/([a-z0-9-]+)", uri)
        return cls(match[1], match[2]) if match and match[1] in ROLES else None


class Watched(Generic[_T]):
    """The parsed contents of files; read again when they change, kept if reading fails.

    Args:
        paths: the files.
        read: reads and checks them; its errors are raised only the first time, later ones are logged.
    """

    def __init__(self, paths: tuple[Path, ...], read: Callable[[], _T]) -> None:
        self._paths, self._read = paths, read
        self._stamp = self._look()
        self._value, self._looked, self._logged = read(), time.monotonic(), ""

    def get(self) -> _T:
        """The current contents."""
        now = time.monotonic()
        if now - self._looked >= LOOK_AGAIN_S:
            self._looked = now
            stamp = self._look()
            if stamp != self._stamp:
                try:
                    self._value, self._stamp = self._read(), stamp
                    self._logged = ""
                    _log.info("%s: read again", self._paths[0].parent)
                except NonnError as exc:  # retried at every check: a file may be half copied, a clock not yet set
                    if str(exc) != self._logged:
                        _log.error("%s; the contents read before stay in use", exc)
                    self._logged = str(exc)
        return self._value

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                stat = path.stat()
                stamps.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError:
                stamps.append(None)
        return tuple(stamps)


@dataclass(frozen=True)
class _Pems:
    """Contents of a TLS folder."""

    identity: Identity
    key: bytes
    chain: bytes
    roots: bytes
    revoked: frozenset[str]
    server: ssl.SSLContext  # of the standard library


class TlsFolder:
    """A TLS folder, written by ``nonn certs issue``.

    Args:
        path: the folder.

    Raises:
        CredentialsError: a file is missing or unreadable, key and certificate do not match, or the certificate is
            invalid: of another authority, expired, not yet valid, revoked.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        files = tuple(self.path / name for name in (IDENTITY, AUTHORITY, REVOKED))
        self._pems = Watched(files, self._read)

    @property
    def identity_file(self) -> Path:
        """Private key and certificate."""
        return self.path / IDENTITY

    @property
    def identity(self) -> Identity:
        """Owner of the folder."""
        return self._pems.get().identity

    @property
    def revoked(self) -> frozenset[str]:
        """Fingerprints of revoked certificates."""
        return self._pems.get().revoked

    @property
    def version(self) -> object:
        """Compares equal while the folder is unchanged."""
        return self._pems.get()

    @property
    def credentials_version(self) -> object:
        """Compares equal while key, certificate and ``ca.pem`` are unchanged; ignores ``revoked.json``."""
        pems = self._pems.get()
        return pems.chain, pems.roots

    @property
    def fingerprint(self) -> str:
        """Of this folder's certificate."""
        return fingerprint(self._pems.get().chain)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a server that requires a certificate from every client.

        A rotated certificate is used from the next handshake.
        """
        used: list[_Pems] = []

        def fetch() -> Any:
            pems = self._pems.get()
            if used and used[-1] is pems:
                return None  # unchanged
            used[:] = [pems]
            return grpc.ssl_server_certificate_configuration([(pems.key, pems.chain)], root_certificates=pems.roots)

        return grpc.dynamic_ssl_server_credentials(fetch(), fetch, require_client_authentication=True)

    def server_context(self) -> ssl.SSLContext:
        """A server's context for the standard library."""

        def renew(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = self._pems.get().server

        context = self._pems.get().server
        context.sni_callback = renew  # called in every handshake, even if the client sends no server name
        return context

    def channel_options(self, server_name: str) -> tuple[grpc.ChannelCredentials, tuple[tuple[str, str], ...]]:
        """Credentials and options of a channel to a server whose certificate must have this name."""
        pems = self._pems.get()
        credentials = grpc.ssl_channel_credentials(pems.roots, pems.key, pems.chain)
        return credentials, (("grpc.ssl_target_name_override", server_name),)

    def context(self) -> ssl.SSLContext:
        """A client's context for the standard library; the caller must check the name in the server's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=self._pems.get().roots.decode())
        context.load_cert_chain(self.identity_file)
        context.set_alpn_protocols(["h2"])
        return context

    def _read(self) -> _Pems:
        pem, roots = self._bytes(IDENTITY), self._bytes(AUTHORITY)
        blocks = [(match[1], match[0]) for match in _PEM.finditer(pem)]
        key = b"".join(block for kind, block in blocks if kind.endswith(b"PRIVATE KEY"))
        chain = b"".join(block for kind, block in blocks if kind == b"CERTIFICATE")
        try:
            revoked = frozenset(str(entry["sha256"]) for entry in json.loads(self._bytes(REVOKED))["revoked"])
        except (ValueError, KeyError, TypeError) as exc:
            raise CredentialsError(f"{self.path / REVOKED}: not a list of revoked certificates ({exc})") from exc
        if not key or not chain:
            raise CredentialsError(f"{self.path / IDENTITY}: contains no private key and certificate in PEM form")
        identity, server = self._check()
        if fingerprint(chain) in revoked:
            raise CredentialsError(
                f"{self.path / IDENTITY}: this certificate has been revoked; issue another: nonn certs issue"
            )
        return _Pems(identity, key, chain, roots, revoked, server)

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as exc:
            raise CredentialsError(
                f"{self.path / name}: {exc.strerror}; give the complete folder that nonn certs issue wrote"
            ) from exc

    def check(self) -> Identity:
        """Verifies the certificate: a handshake in memory, with the folder as client, ``ca.pem`` as root.

        Returns:
            The identity in the certificate.

        Raises:
            CredentialsError: another process would refuse the certificate now.
        """
        return self._check()[0]

    def _check(self) -> tuple[Identity, ssl.SSLContext]:
        """As ``check``; also returns the server's context of that handshake."""
        file = self.path / IDENTITY
        try:
            server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
            server.verify_mode = ssl.CERT_REQUIRED
            # A resumed session is not verified against ca.pem; only TLS 1.3 can disable resumption.
            server.minimum_version, server.num_tickets = ssl.TLSVersion.TLSv1_3, 0
            server.load_verify_locations(self.path / AUTHORITY)
            for context in (server, client):
                context.load_cert_chain(file)
            to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
            asking = client.wrap_bio(to_client, to_server)
            answering = server.wrap_bio(to_server, to_client, server_side=True)
            for end in (asking, answering, asking, answering):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
            names = (answering.getpeercert() or {}).get("subjectAltName", ())
        except ssl.SSLCertVerificationError as exc:
            raise CredentialsError(f"{file}: {verification_text(exc)}") from exc
        except (ssl.SSLError, OSError) as exc:
            raise CredentialsError(
                f"{file}: key, certificate and {AUTHORITY} cannot be used together ({exc}); issue them again"
            ) from exc
        identities = [identity for pair in names if (identity := Identity.from_uri(str(pair[1])))]
        if len(identities) != 1:
            raise CredentialsError(f"{file}: the certificate contains no nonn identity; issue one: nonn certs issue")
        return identities[0], server


def load_tls(path: Path | None, *roles: str) -> TlsFolder | None:
    """The TLS folder at a path; None for no path.

    Raises:
        CredentialsError: the folder cannot be used, or its role is not one of ``roles``.
    """
    if path is None:
        return None
    tls = TlsFolder(path)
    if tls.identity.role not in roles:
        raise CredentialsError(
            f"{path}: the certificate of {tls.identity}; this needs one of role {' or '.join(roles)}: "
            f"nonn certs issue {roles[0]} ID"
        )
    return tls


def verification_text(exc: ssl.SSLCertVerificationError) -> str:
    """Why a certificate is invalid, and what to do."""
    today = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    texts = {
        9: f"the certificate is not yet valid; it is {today} here: is the clock right?",
        10: f"the certificate has expired; it is {today} here: nonn certs rotate makes a new one",
        18: f"the certificate is not of the authority in {AUTHORITY}",
        19: f"the certificate is not of the authority in {AUTHORITY}",
        20: f"the certificate is not of the authority in {AUTHORITY}",
    }
    return texts.get(exc.verify_code, f"the certificate is not accepted ({exc.verify_message})")
