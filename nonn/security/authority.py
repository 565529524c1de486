"""A certificate authority in a folder: it issues, renews and revokes the certificates of a fleet.

::

    certs/
        ca.key           private key of the authority; stays on the operator's machine
        ca.pem           its certificate; every process trusts it
        index.json       issued certificates
        revoked.json     revoked certificates
        node/kitchen/    TLS folder of one process (see nonn.security.tls), to be copied to it as a whole
        aggregator/main/
        client/alice/

The certificate contains the id (``nonn://node/kitchen``), so a stolen certificate impersonates that node only, until
it is revoked. Keys are P-256: a Raspberry Pi signs with it in about a millisecond. Keys are stored without a passphrase
and with mode 0600; read access to ``ca.key`` is enough to issue any certificate.

A certificate that is not in the index, for example after a backup was restored, is revoked by its file.

``revoked.json`` is not an X.509 CRL: gRPC's Python API accepts no CRL, and a node, which checks its callers against the
list, has no library to read one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nonn.errors import ConfigError, CredentialsError
from nonn.files import atomic_file, atomic_folder, write_private
from nonn.security.certificate import certificate_builder, host_name, key_pem, load_certificate
from nonn.security.issued import INDEX, Index, Issued, locked
from nonn.security.tls import AGGREGATOR_NAME, AUTHORITY, IDENTITY, REVOKED, ROLES, Identity, check_id

__all__ = ["CA_DAYS", "DAYS", "Authority", "Issued"]

CA_DAYS, DAYS = 3650, 365
KEY = "ca.key"

Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


class Authority:
    """The authority in a folder.

    Args:
        path: the folder.
        clock: returns the current time.

    Raises:
        CredentialsError: the folder has no authority, or its files cannot be read.
    """

    def __init__(self, path: Path, clock: Clock = _now) -> None:
        self.path, self._clock = path, clock
        try:
            self._certificate: x509.Certificate = x509.load_pem_x509_certificate((path / AUTHORITY).read_bytes())
            self._key: Any = serialization.load_pem_private_key((path / KEY).read_bytes(), password=None)
            self._index = Index(path)
        except FileNotFoundError as exc:
            raise CredentialsError(f"{exc.filename}: no such file; make an authority: nonn certs init") from None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise CredentialsError(f"{path}: not the folder of an authority ({exc})") from exc
        if self._key.public_key() != self._certificate.public_key():
            raise CredentialsError(f"{path}: {KEY} is not the key of {AUTHORITY}; restore both from one backup")

    @classmethod
    def create(cls, path: Path, name: str = "nonn fleet", days: int = CA_DAYS, clock: Clock = _now) -> Authority:
        """Creates a new authority.

        Args:
            path: the folder.
            name: common name of its certificate, for people.
            days: validity.
            clock: returns the current time.

        Raises:
            ConfigError: the folder has an authority already, or the days are out of range.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "digital_signature"), False
        )
        certificate = (
            certificate_builder(clock(), subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        with _all_or_nothing(path, (KEY, AUTHORITY, INDEX, REVOKED)):
            if (path / KEY).exists() or (path / AUTHORITY).exists():
                raise ConfigError(f"{path}: there is an authority already; name another folder: --dir")
            write_private(path / KEY, key_pem(key))
            with atomic_file(path / AUTHORITY) as temporary:
                temporary.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            Index.create(path)
        return cls(path, clock)

    @property
    def issued(self) -> Sequence[Issued]:
        """Every certificate, the oldest first."""
        return tuple(self._index.entries)

    def folder(self, role: str, name: str) -> Path:
        """Path of the TLS folder of an identity."""
        return self.path / role / name

    def issue(self, role: str, name: str, *, hosts: Iterable[str] = (), days: float = DAYS) -> Issued:
        """Issues a certificate with a new key, and writes the TLS folder.

        Args:
            role: ``node``, ``aggregator`` or ``client``.
            name: the id.
            hosts: DNS names and IP addresses at which clients other than nonn's reach it.
            days: validity, limited to that of the authority.

        Raises:
            ConfigError: unknown role, an invalid id or host, or the id has a valid certificate already.
        """
        identity = self._identity(role, name)
        with self._index.changing():
            self._check_free(identity)
            return self._issue(identity, tuple(dict.fromkeys(hosts)), days)

    def sign(self, role: str, name: str, request: bytes, *, days: float = DAYS) -> tuple[Issued, bytes]:
        """Issues a certificate for a key that its owner has made and keeps; no folder is written.

        Args:
            role: as in ``issue``.
            name: the id; names in the request are ignored.
            request: certificate signing request, PEM, of a P-256 key.
            days: as in ``issue``.

        Returns:
            The entry of the index, and the certificate as PEM.

        Raises:
            ConfigError: as in ``issue``, or the request is invalid.
        """
        identity = self._identity(role, name)
        try:
            signed = x509.load_pem_x509_csr(request)
            key = signed.public_key()
            valid = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
            valid = valid and signed.is_signature_valid
        except (ValueError, UnsupportedAlgorithm):
            valid = False
        if not valid:
            raise ConfigError(f"{identity}: not a signing request of a P-256 key, signed with that key")
        with self._index.changing():
            self._check_free(identity)
            certificate = self._certify(identity, (), days, key)
            entry = _entry(identity, (), certificate)
            self._index.add(entry)
        return entry, certificate.public_bytes(serialization.Encoding.PEM)

    def rotate(self, role: str, name: str, *, days: float = DAYS) -> Issued:
        """Issues a certificate with a new key to an existing id, for the same hosts.

        The old one stays valid until it expires or is revoked, so that nothing breaks before the new one is installed.

        Raises:
            ConfigError: the id has no certificate.
        """
        identity = self._identity(role, name)
        with self._index.changing():
            if not self._index.of(identity):
                raise ConfigError(f"{identity} has no certificate; make one: nonn certs issue {role} {name}")
            return self._issue(identity, self._index.of(identity)[-1].hosts, days)

    def revoke(self, role: str, name: str, *, reason: str = "", keep_newest: bool = False) -> Sequence[Issued]:
        """Revokes the certificates of an id, in every ``revoked.json`` below the folder.

        Args:
            role: of the owner.
            name: the id.
            reason: for people.
            keep_newest: revokes all but the newest, after a rotation.

        Returns:
            The certificates that were revoked now.

        Raises:
            ConfigError: there is nothing to revoke.
        """
        identity = self._identity(role, name)
        with self._index.changing():
            mine = self._index.of(identity)
            doomed = [entry for entry in (mine[:-1] if keep_newest else mine) if not entry.revoked]
            if not doomed:
                raise ConfigError(f"{identity} has no {'older ' if keep_newest else ''}certificate to revoke")
            return self._revoke(doomed, reason)

    def revoke_file(self, path: Path, *, reason: str = "") -> Sequence[Issued]:
        """Revokes one certificate by its file, whether or not the index has it.

        Args:
            path: a TLS folder, or a PEM file with the certificate.
            reason: for people.

        Returns:
            The certificate.

        Raises:
            ConfigError: it has been revoked already.
            CredentialsError: the file has no certificate of a process, or one of another authority.
        """
        file, certificate = load_certificate(path)
        try:
            certificate.verify_directly_issued_by(self._certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            found = names.get_values_for_type(x509.UniformResourceIdentifier)
            (identity,) = filter(None, map(Identity.from_uri, found))
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as exc:
            raise CredentialsError(
                f"{file}: not a certificate of a node, aggregator or client that the authority in {self.path} issued"
            ) from exc
        entry = _entry(identity, (), certificate)
        with self._index.changing():
            known = next((each for each in self._index.entries if each.sha256 == entry.sha256), None)
            if known and known.revoked:
                raise ConfigError(f"{file}: the certificate of {identity} has been revoked on {known.revoked[:10]}")
            return self._revoke([known or entry], reason)

    def _check_free(self, identity: Identity) -> None:
        """Raises ConfigError if an id has a valid certificate; only inside ``changing``."""
        if any(entry.state == "valid" for entry in self._index.of(identity)):
            role, name = identity.role, identity.id
            raise ConfigError(
                f"{identity} has a certificate already; renew it: nonn certs rotate {role} {name}, or revoke it first"
            )

    def _revoke(self, doomed: Sequence[Issued], reason: str) -> Sequence[Issued]:
        return self._index.revoke(doomed, self._clock().isoformat(timespec="seconds"), reason)

    def check_issued(self, path: Path) -> None:
        """Checks that the certificate of a TLS folder is of this authority.

        Raises:
            CredentialsError: it is of another one.
        """
        file, certificate = load_certificate(path)
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature) as exc:
            raise CredentialsError(
                f"{file}: not a certificate of the authority in {self.path}; name the folder of the one that issued it"
            ) from exc

    def _issue(self, identity: Identity, hosts: tuple[str, ...], days: float) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certify(identity, hosts, days, key.public_key())
        entry = _entry(identity, hosts, certificate)
        pem = key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)
        folder = self.folder(identity.role, identity.id)
        # The index is written before the certificate: a certificate that is not in the index could not be revoked.
        if folder.exists():
            self._index.add(entry)
            self._fill(folder, pem)
        else:
            with atomic_folder(folder) as temporary:
                self._fill(temporary, pem)
                self._index.add(entry)
        return entry

    def _certify(self, identity: Identity, hosts: tuple[str, ...], days: float, key: Any) -> x509.Certificate:
        """A certificate that binds an identity to a public key."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name)]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.role != "client":
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        if identity.role == "aggregator":
            names.append(x509.DNSName(AGGREGATOR_NAME))
        names += map(host_name, hosts)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{identity.role} {identity.id}")])
        issuer = self._certificate.subject
        return (
            certificate_builder(self._clock(), subject, issuer, key, days, self._certificate)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _fill(self, folder: Path, pem: bytes) -> None:
        """Writes the files of a TLS folder."""
        folder.chmod(0o700)
        with atomic_file(folder / AUTHORITY) as temporary:
            temporary.write_bytes((self.path / AUTHORITY).read_bytes())
        self._index.write_list(folder)
        write_private(folder / IDENTITY, pem)

    @staticmethod
    def _identity(role: str, name: str) -> Identity:
        if role not in ROLES:
            raise ConfigError(f"unknown role '{role}'; there are {', '.join(ROLES)}")
        return Identity(role, check_id(name))


def _entry(identity: Identity, hosts: tuple[str, ...], certificate: x509.Certificate) -> Issued:
    """The entry of a certificate in the index."""
    return Issued(
        identity.role,
        identity.id,
        hosts,
        certificate.fingerprint(hashes.SHA256()).hex(),
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc.isoformat(),
        certificate.not_valid_after_utc.isoformat(),
    )


@contextlib.contextmanager
def _all_or_nothing(path: Path, names: Sequence[str]) -> Iterator[None]:
    """Creates a folder for these files and locks it; on an error, new files and folders are removed again."""
    files = list[Path]()
    folders = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            files = [path / name for name in names if not (path / name).exists()]  # not those of another process
            yield
    except BaseException:
        for made, remove in [*((file, Path.unlink) for file in files), *((folder, Path.rmdir) for folder in folders)]:
            with contextlib.suppress(OSError):  # never created, or the folder has files of another process
                remove(made)
        raise
