"""Explains failed TLS connections, with a remedy.

gRPC reports ``Socket closed`` to the client and nothing to the server. So a refused client connects again with the
standard library, which reports why a certificate is invalid (``explain``), and a server parses the messages that gRPC's
core writes to standard error about handshakes (``log_failed_handshakes``), their only source.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import logging
import os
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nonn.security.tls import TlsFolder

__all__ = ["LOG_AGAIN_S", "Diagnosis", "DiagnosisKind", "explain", "log_failed_handshakes", "reason"]

TIMEOUT_S = 2.0  # for a second connection to a server that has just refused one
LOG_AGAIN_S = 10.0  # the same refusal is logged at most this often, since refused peers try again

# Part of gRPC's text → ours. Both sides of a connection log these, hence "the other side".
_REASONS = {
    "certificate has expired": "the other side's certificate has expired: nonn certs rotate makes a new one",
    "certificate is not yet valid": "the other side's certificate is not yet valid: are both clocks right?",
    "unable to get local issuer": "the other side's certificate is not of the authority in ca.pem",
    "self-signed certificate": "the other side's certificate is not of the authority in ca.pem",
    "self signed certificate": "the other side's certificate is not of the authority in ca.pem",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other side shows no certificate: give it --tls with its own folder",
    "WRONG_VERSION_NUMBER": "the other side uses plain text, this side TLS: give it --tls with its own folder",
    "HTTP_REQUEST": "the other side uses plain text, this side TLS: give it --tls with its own folder",
    # BoringSSL reports OpenSSL's alert like this, since the alert arrives before its keys.
    "BAD_PACKET_LENGTH": "the other side closed the connection: it refused this side's certificate, see its log",
    "Hostname Verification": "the other side's certificate has another identity",
    # The other side gave up, or closed: no certificate was judged.
    "Handshake write failed": "the connection closed during the TLS handshake: one of the two machines is slow or busy",
    "Handshake timed out": "no TLS handshake in time: one of the two machines is slow or busy",
}

_log = logging.getLogger(__name__)


class DiagnosisKind(enum.Enum):
    """Result of a second connection to a server."""

    ACCEPTED = enum.auto()  # both sides accept each other's certificate
    REVOKED = enum.auto()  # the server's certificate was revoked
    REFUSED = enum.auto()  # one side refuses the other for another reason
    UNKNOWN = enum.auto()  # no TLS problem was found, for example because the server does not answer


@dataclass(frozen=True)
class Diagnosis:
    """Result of a second connection to a server, and its text.

    Attributes:
        kind: the result.
        text: the problem and its remedy; empty without a problem.
    """

    kind: DiagnosisKind
    text: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether TLS prevents a connection."""
        return self.kind in (DiagnosisKind.REVOKED, DiagnosisKind.REFUSED)


def reason(details: str) -> str | None:
    """Translates gRPC's text about a failed connection; None if it is not about TLS."""
    return next((text for part, text in _REASONS.items() if part in details), None)


def explain(address: str, server_name: str | None, tls: TlsFolder | None) -> Diagnosis:
    """Diagnoses a server after a failed connection; takes up to two seconds.

    Args:
        address: ``host:port``.
        server_name: that its certificate must have; None accepts any of the authority.
        tls: of the caller; None if it uses plain text.

    Raises:
        CredentialsError: the caller's own certificate is no longer valid.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as connection:
            if tls is None:
                return _explain_plain(connection)
            tls.check()
            return _explain_tls(connection, server_name, tls)
    except (OSError, ValueError):
        return Diagnosis(DiagnosisKind.UNKNOWN)  # no answer: gRPC reports that well


def _explain_plain(connection: socket.socket) -> Diagnosis:
    """Reports a server that uses TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connection).close()
    except (ssl.SSLError, OSError):
        return Diagnosis(DiagnosisKind.UNKNOWN)
    return _refused("it uses TLS, this side plain text: give --tls with a folder of nonn certs issue")


def _explain_tls(connection: socket.socket, server_name: str | None, tls: TlsFolder) -> Diagnosis:
    """The problem with the server's certificate, or with ours for the server."""
    from nonn.security.tls import REVOKED, verification_text

    try:
        with tls.context().wrap_socket(connection) as secure:
            names = secure.getpeercert() or {}
            der = secure.getpeercert(binary_form=True) or b""
            alternatives = [str(pair[1]) for pair in names.get("subjectAltName", ())]
            if hashlib.sha256(der).hexdigest() in tls.revoked:
                text = f"its certificate has been revoked (see {tls.path / REVOKED}): issue another for it"
                return Diagnosis(DiagnosisKind.REVOKED, text)
            if server_name is not None and server_name not in alternatives:
                shown = next((name for name in alternatives if name.startswith("nonn://")), "no nonn identity")
                return _refused(
                    f"it shows the certificate of {shown}, not of {server_name}: is that the right address?"
                )
            # An HTTP/2 server sends first. A server that refuses our certificate closes the connection instead.
            if secure.recv(1):
                return Diagnosis(DiagnosisKind.ACCEPTED)
    except ssl.SSLCertVerificationError as exc:
        return _refused(f"its certificate is not accepted: {verification_text(exc)}")
    except ssl.SSLError as exc:
        if exc.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            return _refused("it uses plain text, this side TLS: give it --tls with its own folder")
    except TimeoutError:
        return Diagnosis(DiagnosisKind.UNKNOWN)
    except OSError:
        pass
    return _refused(
        f"it refuses the certificate in {tls.path}; its log has the reason: another authority, a wrong clock, or a "
        "newer list of revoked certificates"
    )


def _refused(text: str) -> Diagnosis:
    return Diagnosis(DiagnosisKind.REFUSED, text)


def log_failed_handshakes() -> None:
    """Turns the messages of gRPC's core about failed handshakes into log lines; call it before gRPC is first used.

    The core writes only to file descriptor 2. A thread reads that; Python's own standard error, tracebacks included,
    goes to the same place as before.
    """
    os.environ["GRPC_VERBOSITY"] = "INFO"
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    threading.Thread(target=_follow, args=(reading,), name="handshake-log", daemon=True).start()


def _follow(descriptor: int) -> None:
    """Logs each reason at most once in ten seconds; passes on lines that are fatal or not gRPC's."""
    logged: dict[str, float] = {}
    with open(descriptor, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if ".cc:" not in line or line.startswith("F"):  # not gRPC's, or fatal
                with contextlib.suppress(ValueError, OSError):
                    sys.stderr.write(line)
                continue
            text, now = reason(line) if "ssl_transport_security" in line else None, time.monotonic()
            if text is not None and now - logged.get(text, -LOG_AGAIN_S) >= LOG_AGAIN_S:
                logged[text] = now
                _log.warning("a connection was refused: %s", text)
