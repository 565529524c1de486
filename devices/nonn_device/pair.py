"""Pairing: a device without a certificate gets one from the aggregator that a code names.

The device makes its private key, which never leaves it, and sends a signing request. It finds the aggregator by
multicast DNS (``nonn_device.discovery``) or is given its address. Neither is trusted: before anything is sent, the
certificate that the other side shows is compared with the code (``nonn.security.pairing``).

The result is the folder ``DATA/paired``, a TLS folder (``nonn.security.tls``) with one more file, the aggregator's
address. It appears as a whole, after the aggregator has answered and the certificate has been verified. The next start
finds it and needs no code.

``cryptography``, which makes the key, is not in the base install of a device: pip install 'nonn[pair]'. Only a process
that pairs imports it.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonn.errors import ConfigError, CredentialsError, DataError, MissingExtraError, NonnError, UnreachableError
from nonn.files import atomic_folder, write_durable, write_json, write_private
from nonn.rpc.address import split_address
from nonn.security.pairing import MAX_LINE_BYTES, PairingCode, PairingRequest
from nonn.security.tls import AUTHORITY, IDENTITY, REVOKED, Identity, TlsFolder, check_id
from nonn.telemetry.printable import printable

__all__ = ["Found", "Paired", "default_id", "pair", "paired"]

FOLDER, ADDRESS = "paired", "aggregator.json"
TIMEOUT_S = 10.0  # of each step of a connection
RESERVED_BYTES = 2 * MAX_LINE_BYTES  # more than an answer needs, one block for each file included
ATTEMPTS = 3  # if the connection breaks after the request: the same key gets the same certificate

_log = logging.getLogger(__name__)


class _OtherCertificateError(Exception):
    """The other side is not the aggregator that the code names; nothing was sent."""


@dataclass(frozen=True)
class Found:
    """An aggregator that may be the right one.

    Attributes:
        name: that it gives itself; empty for an address of the operator.
        addresses: ``host:port`` of its pairing, in order of preference.
    """

    name: str
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(filter(None, (printable(self.name, 80), *self.addresses[:1])))


@dataclass(frozen=True)
class Paired:
    """What a device has after pairing.

    Attributes:
        path: its TLS folder.
        aggregator: ``host:port``.
    """

    path: Path
    aggregator: str


def paired(data: Path) -> Paired | None:
    """What an earlier start has got; None without one.

    Args:
        data: the device's data folder.

    Raises:
        CredentialsError: the folder is there but cannot be used.
    """
    path = data / FOLDER
    if not path.is_dir():
        return None
    remedy = f"remove {path} and pair again with a new code"
    try:
        address = str(json.loads((path / ADDRESS).read_text())["aggregator"])
        split_address(address)
        TlsFolder(path)
    except CredentialsError as exc:
        raise CredentialsError(f"{exc}; or {remedy}") from exc
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as exc:
        raise CredentialsError(f"{path / ADDRESS}: cannot be read ({exc}); {remedy}") from exc
    return Paired(path, address)


def default_id() -> str:
    """The host name as an id.

    Raises:
        ConfigError: it has no letter or digit.
    """
    name = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().partition(".")[0].lower())[:63].strip("-")
    if not name:
        raise ConfigError("the host name of this device cannot be its id; choose one: --id")
    return check_id(name)


def pair(data: Path, name: str, code: PairingCode, candidates: Iterable[Found]) -> Paired:
    """Gets a certificate and stores it.

    Args:
        data: the device's data folder.
        name: id of the device.
        code: names the aggregator.
        candidates: aggregators to try, in turn.

    Raises:
        ConfigError: the id is invalid, or taken.
        CredentialsError: no candidate is the aggregator of the code, or it refuses.
        DataError: the folder cannot be written; the code has not been used.
        MissingExtraError: cryptography is not installed.
        UnreachableError: there is no candidate, or none answers.
    """
    check_id(name)
    path = data / FOLDER
    try:
        # The folder is opened and its space taken first: a disk that cannot be written, or is full, uses up no code.
        with atomic_folder(path, durable=True) as temporary:
            temporary.chmod(0o700)
            reserved = temporary / "reserved"
            write_durable(reserved, bytes(RESERVED_BYTES))
            key, csr = _key_and_request(name)
            request = PairingRequest(secret=code.secret.hex(), id=name, csr=csr, time=time.time())
            address, answer = _ask_each(candidates, code, request)
            reserved.unlink()
            _store(temporary, key, name, address, answer)
    except OSError as exc:
        raise DataError(f"{path}: cannot be written ({exc.strerror}); name another folder: --data") from exc
    found = paired(data)
    assert found is not None
    return found


def _key_and_request(name: str) -> tuple[bytes, str]:
    """A private key and its signing request, both PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError as exc:
        raise MissingExtraError("cryptography", "pair") from exc
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"node {name}")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, request.public_bytes(serialization.Encoding.PEM).decode()


def _ask_each(candidates: Iterable[Found], code: PairingCode, request: PairingRequest) -> tuple[str, Any]:
    """Address and answer of the aggregator that the code names."""
    others, silent = list[str](), list[str]()
    refused: CredentialsError | None = None
    for found in candidates:
        for address in found.addresses:
            try:
                return address, _ask(address, code, request)
            except _OtherCertificateError:
                others.append(str(found))
                _log.info("%s: not the aggregator of this code", found)
                break
            except CredentialsError as exc:
                # Aggregators that share a certificate differ in the secret only.
                refused = refused or exc
                break
            except OSError as exc:
                silent.append(f"{address} ({printable(str(exc.strerror or exc), 80)})")
    if refused is not None:
        raise refused
    if others:
        raise CredentialsError(
            f"no aggregator has the certificate that the code names; found: {', '.join(others)}. Nothing was sent. Is "
            "the code from the aggregator that you mean, and its latest? Then another machine answers in its place, or "
            "multicast does not reach it; to try one address only: --pair-with HOST:PORT"
        )
    if silent:
        raise UnreachableError(
            f"no answer at {', '.join(silent)}: has the code been used, or expired? Then print another. Otherwise a "
            "firewall may be in between"
        )
    raise UnreachableError(
        "no aggregator found by multicast DNS: does nonn serve --pair run, and is its code valid? Is this device in "
        "the same network, and do firewall and access point let multicast through (UDP port 5353)? Or give the address "
        "that nonn serve --pair prints: --pair-with HOST:PORT"
    )


def _ask(address: str, code: PairingCode, request: PairingRequest) -> Any:
    """The answer at an address.

    Raises:
        _OtherCertificateError: another certificate than that of the code.
        CredentialsError: the aggregator refuses.
        OSError: no answer.
    """
    for left in reversed(range(ATTEMPTS)):
        with socket.create_connection(split_address(address), TIMEOUT_S) as connection:
            secure = _checked(connection, code)
            try:
                with secure:
                    secure.sendall(request.line())
                    line = secure.makefile("rb").readline(MAX_LINE_BYTES)
                if not line.endswith(b"\n"):
                    raise ConnectionError("the connection broke")
                break
            except OSError as exc:
                if not left:
                    raise
                _log.warning("%s: %s; asking again", address, exc)
    try:
        answer = json.loads(line)
        if "error" in answer:
            raise CredentialsError(f"{address} refuses: {printable(str(answer['error']))}")
        return answer
    except (ValueError, TypeError) as exc:
        raise CredentialsError(f"{address}: not the answer of an aggregator; its version of nonn is another") from exc


def _checked(connection: socket.socket, code: PairingCode) -> ssl.SSLSocket:
    """A TLS connection to the aggregator that the code names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The code takes the place of an authority, which the device does not know yet. TLS still proves that the other side
    # has the key of its certificate. Dates are not checked, since the clock may be wrong.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    secure = context.wrap_socket(connection)
    if not code.names(secure.getpeercert(binary_form=True) or b""):
        secure.close()
        raise _OtherCertificateError
    return secure


def _store(folder: Path, key: bytes, name: str, address: str, answer: Any) -> None:
    """Writes and verifies the TLS folder."""
    try:
        certificate, authority, revoked = (str(answer[key]) for key in ("certificate", "authority", "revoked"))
        host, _, _ = address.rpartition(":")
        aggregator = f"{host}:{int(answer['port'])}"
        split_address(aggregator)
    except (KeyError, TypeError, ValueError, ConfigError) as exc:
        raise CredentialsError(f"{address}: not the answer of an aggregator; its version of nonn is another") from exc
    write_private(folder / IDENTITY, key + certificate.encode())
    (folder / AUTHORITY).write_text(authority)
    (folder / REVOKED).write_text(revoked)
    write_json(folder / ADDRESS, {"schema": 1, "aggregator": aggregator})
    try:
        identity = TlsFolder(folder).identity
    except NonnError as exc:
        raise CredentialsError(f"{address}: its certificate for this device cannot be used: {exc}") from exc
    if identity != Identity("node", name):
        raise CredentialsError(f"{address}: its certificate is of {identity}, not of {Identity('node', name)}")
