"""The code with which a new device gets its certificate, and the messages that travel under its protection.

A code names a certificate and has a secret, as the join tokens of Docker Swarm, k3s and kubeadm do::

    ABCDE-FGHIJ-…      40 characters of base32: 16 bytes of the SHA-256 of the aggregator's certificate,
                       8 bytes of secret, 1 byte of checksum

The device connects with TLS, compares the certificate that it is shown with the code, and sends nothing if they differ.
A machine in the middle has to find another certificate with the same 128 bits, a second preimage. The secret travels
inside that connection only, so it can be guessed only by asking the aggregator, which answers few wrong ones. The
checksum finds typing errors before an attempt is spent.

Each side sends one line of JSON. This module needs only the standard library.

Decision: docs/decisions/09-pairing-code.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from nonn.errors import ConfigError, CredentialsError

__all__ = ["MAX_LINE_BYTES", "SERVICE_TYPE", "PairingCode", "PairingRequest"]

SERVICE_TYPE = "_nonn-pair._tcp.local."  # of multicast DNS
MAX_LINE_BYTES = 65_536  # of a message; an answer has a certificate, the authority's, and the list of revoked ones
PIN_BYTES, SECRET_BYTES, CHECK_BYTES = 16, 8, 1
_CHARS, _GROUP = 8 * (PIN_BYTES + SECRET_BYTES + CHECK_BYTES) // 5, 5


@dataclass(frozen=True)
class PairingCode:
    """A code.

    Attributes:
        pin: the first bytes of the SHA-256 of the aggregator's certificate.
        secret: known only to readers of the code.
    """

    pin: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls, fingerprint: str) -> Self:
        """A new code for a certificate, given by its SHA-256 in hex."""
        return cls(bytes.fromhex(fingerprint)[:PIN_BYTES], secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of ``text``; spaces, hyphens and case do not matter, and 0, 1 and 8 are read as O, I and B.

        Raises:
            CredentialsError: it is not a code. The message does not contain it.
        """
        plain = "".join(text.split()).replace("-", "").upper().replace("8", "B")
        problem = f"the code has {len(plain)} characters, not {_CHARS}"
        if len(plain) == _CHARS:
            try:
                raw = base64.b32decode(plain, map01="I")
                body, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
                if hmac.compare_digest(check, _check(body)):
                    return cls(body[:PIN_BYTES], body[PIN_BYTES:])
                problem = "the code has a typing error"
            except (binascii.Error, ValueError):
                problem = "the code has other characters than letters and 2 to 7"
        raise CredentialsError(f"{problem}; copy it again from the terminal of nonn serve --pair (nothing was sent)")

    def text(self) -> str:
        """The code for people, in groups of five characters."""
        body = self.pin + self.secret
        plain = base64.b32encode(body + _check(body)).decode()
        return "-".join(plain[i : i + _GROUP] for i in range(0, _CHARS, _GROUP))

    def names(self, certificate: bytes) -> bool:
        """Whether the code is for this certificate (DER)."""
        return hmac.compare_digest(hashlib.sha256(certificate).digest()[:PIN_BYTES], self.pin)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"nonn pairing code" + body).digest()[:CHECK_BYTES]


@dataclass(frozen=True)
class PairingRequest:
    """What a device sends.

    Attributes:
        secret: of the code, in hex.
        id: of the device.
        csr: its certificate signing request, PEM.
        time: its clock, seconds since 1970.
    """

    secret: str = field(repr=False)
    id: str
    csr: str
    time: float

    def line(self) -> bytes:
        """The message."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """The inverse of ``line``.

        Raises:
            ConfigError: it is something else.
        """
        try:
            fields: Any = json.loads(line)
            secret, name, csr = (fields[key] for key in ("secret", "id", "csr"))
            if not all(isinstance(text, str) and text.isascii() for text in (secret, name, csr)):
                raise ValueError
            return cls(secret, name, csr, float(fields["time"]))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as exc:
            raise ConfigError("not the request of a device that pairs; its version of nonn is another") from exc
