"""Why a TLS connection failed, in words that say what to do.

gRPC tells the one side ``Socket closed`` and the other side nothing. So whoever was refused asks again with the
standard library, which says what it dislikes about the certificate that it sees (``explain``), and a server reads what
gRPC's core writes on standard error about handshakes (``log_failed_handshakes``): it has no other way to tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import ssl
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nonn.security.tls import TlsFolder

__all__ = ["REVOKED_TEXT", "explain", "log_failed_handshakes", "reason"]

TIMEOUT_S = 2.0  # for a second look at a server that has just refused
SAY_AGAIN_S = 10.0
REVOKED_TEXT = "its certificate has been revoked"

# Part of gRPC's text → ours. Both sides of a connection get these, so they speak of "the other side".
_REASONS = {
    "certificate has expired": "the other side's certificate has expired: nonn certs rotate makes a new one",
    "certificate is not yet valid": "the other side's certificate is not yet valid: are both clocks right?",
    "unable to get local issuer": "the other side's certificate is not of the authority in ca.pem",
    "self-signed certificate": "the other side's certificate is not of the authority in ca.pem",
    "self signed certificate": "the other side's certificate is not of the authority in ca.pem",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other side shows no certificate: give it --tls with a folder of its own",
    "WRONG_VERSION_NUMBER": "the other side speaks plain text, this side TLS: give it --tls with a folder of its own",
    "HTTP_REQUEST": "the other side speaks plain text, this side TLS: give it --tls with a folder of its own",
    # What BoringSSL makes of OpenSSL's alert, which comes before its keys do.
    "BAD_PACKET_LENGTH": "the other side broke off: this side's certificate does not count there, its log says why",
    "Hostname Verification": "the other side's certificate is of somebody else",
}

_log = logging.getLogger(__name__)


def reason(details: str) -> str | None:
    """Puts gRPC's text about a failed connection into ours; None if it is not about TLS."""
    return next((text for part, text in _REASONS.items() if part in details), None)


def explain(address: str, server_name: str | None, tls: TlsFolder | None) -> str | None:
    """Looks again at a server to which no connection came about; takes up to two seconds.

    Args:
        address: ``host:port``.
        server_name: that its certificate must have; None for any of the authority.
        tls: of the caller; None if it speaks plain text.

    Returns:
        What is wrong and what to do; empty if both sides' certificates count; None if that could not be seen, since
        nobody is there or nothing of TLS is wrong.

    Raises:
        CredentialsError: the caller's own certificate does not count any more.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as connection:
            if tls is None:
                return _explain_plain(connection)
            tls.check()
            return _explain_tls(connection, server_name, tls)
    except (OSError, ValueError):
        return None  # nobody is there, which gRPC tells well


def _explain_plain(connection: socket.socket) -> str | None:
    """Whether the server speaks TLS after all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connection).close()
    except (ssl.SSLError, OSError):
        return None
    return "it speaks TLS, this side plain text: give --tls with a folder of nonn certs issue"


def _explain_tls(connection: socket.socket, server_name: str | None, tls: TlsFolder) -> str | None:
    """What is wrong with the server's certificate, or else with ours in its eyes; empty and None as ``explain``."""
    from nonn.security.tls import REVOKED, verification_text

    try:
        with tls.context().wrap_socket(connection) as secure:
            names = secure.getpeercert() or {}
            der = secure.getpeercert(binary_form=True) or b""
            alternatives = [str(pair[1]) for pair in names.get("subjectAltName", ())]
            if hashlib.sha256(der).hexdigest() in tls.revoked:
                return f"{REVOKED_TEXT} (see {tls.path / REVOKED}): issue another for it"
            if server_name is not None and server_name not in alternatives:
                shown = next((name for name in alternatives if name.startswith("nonn://")), "nobody that nonn knows")
                return f"it shows the certificate of {shown}, not of {server_name}: is that the right address?"
            # A server of HTTP/2 speaks first. One that refuses our certificate hangs up instead.
            if secure.recv(1):
                return ""
    except ssl.SSLCertVerificationError as exc:
        return f"its certificate does not count here: {verification_text(exc)}"
    except ssl.SSLError as exc:
        if exc.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            return "it speaks plain text, this side TLS: give it --tls with a folder of its own"
    except TimeoutError:
        return None
    except OSError:
        pass
    return (
        f"it refuses the certificate in {tls.path}, and its log says why: another authority, a clock that is wrong, "
        "or a newer list of revoked certificates"
    )


def log_failed_handshakes() -> None:
    """Turns what gRPC's core says about failed handshakes into log lines; to be called before gRPC is first used.

    The core writes into file descriptor 2 and nowhere else. A thread reads that; Python's own standard error,
    tracebacks included, goes where it always went.
    """
    os.environ["GRPC_VERBOSITY"] = "INFO"
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    threading.Thread(target=_follow, args=(reading,), name="handshake-log", daemon=True).start()


def _follow(descriptor: int) -> None:
    """Says each reason at most once in ten seconds; what is not gRPC's, and what is fatal, is passed on."""
    said: dict[str, float] = {}
    with open(descriptor, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if ".cc:" not in line or line.startswith("F"):  # no line of gRPC's, or its last words
                with contextlib.suppress(ValueError, OSError):
                    sys.stderr.write(line)
                continue
            text, now = reason(line) if "ssl_transport_security" in line else None, time.monotonic()
            if text is not None and now - said.get(text, -SAY_AGAIN_S) >= SAY_AGAIN_S:
                said[text] = now
                _log.warning("a connection was refused: %s", text)
