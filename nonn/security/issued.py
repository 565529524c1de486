"""The index of an authority: the certificates that it has issued, and the lists of those that are revoked.

Every change locks the folder, reads the index again and writes it durably, so that commands that run at the same time
lose no entry, and neither a kill nor a power cut loses a revocation. The list of the authority is written last: if it
is not that of the index, a revocation was killed half way, and the next change completes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nonn.files import json_bytes, write_durable
from nonn.security.tls import REVOKED, Identity

__all__ = ["INDEX", "Index", "Issued", "locked"]

INDEX = "index.json"


@dataclass(frozen=True)
class Issued:
    """An issued certificate.

    Attributes:
        role: of its owner.
        id: of its owner.
        hosts: further DNS names and IP addresses in it.
        sha256: of the certificate.
        serial: serial number, in hex.
        not_before: ISO 8601, UTC.
        not_after: ISO 8601, UTC.
        revoked: time of revocation, ISO 8601; empty if not revoked.
        reason: of the revocation.
    """

    role: str
    id: str
    hosts: tuple[str, ...]
    sha256: str
    serial: str
    not_before: str
    not_after: str
    revoked: str = ""
    reason: str = ""

    @property
    def state(self) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked:
            return "revoked"
        return "expired" if datetime.now(UTC).isoformat() > self.not_after else "valid"


class Index:
    """The index in the folder of an authority.

    Args:
        path: the folder.

    Attributes:
        entries: every certificate, the oldest first.

    Raises:
        OSError: the index cannot be read.
        ValueError, KeyError, TypeError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries = self._read()

    @classmethod
    def create(cls, path: Path) -> Index:
        """An index without certificates, in a folder that has none."""
        _write(path / INDEX, {"schema": 1, "issued": []})
        _write(path / REVOKED, {"schema": 1, "revoked": []})
        return cls(path)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Keeps other processes from changing the folder, with the index as they left it."""
        with locked(self._path):
            self.entries = self._read()
            listed = self._path / REVOKED
            if not listed.exists() or listed.read_bytes() != json_bytes(self._revoked()):
                self._write_lists()
            yield

    def of(self, identity: Identity) -> list[Issued]:
        """The certificates of one owner, the oldest first."""
        return [entry for entry in self.entries if (entry.role, entry.id) == (identity.role, identity.id)]

    def add(self, entry: Issued) -> None:
        """Adds a certificate; only inside ``changing``."""
        self.entries.append(entry)
        try:
            self._write()
        except BaseException:
            self.entries.remove(entry)
            raise

    def revoke(self, doomed: Sequence[Issued], now: str, reason: str) -> Sequence[Issued]:
        """Marks certificates as revoked and writes every list; only inside ``changing``.

        Args:
            doomed: the certificates; one that the index does not have is added.
            now: time of the revocation, ISO 8601.
            reason: free text.

        Returns:
            Their new entries.
        """
        revoked = {entry.sha256: replace(entry, revoked=now, reason=reason) for entry in doomed}
        known = {entry.sha256 for entry in self.entries}
        self.entries = [revoked.get(entry.sha256, entry) for entry in self.entries]
        self.entries += [entry for sha256, entry in revoked.items() if sha256 not in known]
        self._write()
        self._write_lists()
        return list(revoked.values())

    def write_list(self, folder: Path) -> None:
        """Writes the list of revoked certificates into a TLS folder."""
        _write(folder / REVOKED, self._revoked())

    def _write_lists(self) -> None:
        for file in (*self._path.glob(f"*/*/{REVOKED}"), self._path / REVOKED):
            self.write_list(file.parent)

    def _read(self) -> list[Issued]:
        entries = json.loads((self._path / INDEX).read_text())["issued"]
        return [Issued(**{**entry, "hosts": tuple(entry["hosts"])}) for entry in entries]

    def _write(self) -> None:
        _write(self._path / INDEX, {"schema": 1, "issued": [asdict(entry) for entry in self.entries]})

    def _revoked(self) -> dict[str, Any]:
        keys = ("role", "id", "serial", "sha256", "revoked", "reason")
        revoked = [{key: getattr(entry, key) for key in keys} for entry in self.entries if entry.revoked]
        return {"schema": 1, "revoked": revoked}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other commands of ``nonn certs`` from changing a folder during the block."""
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, value: dict[str, Any]) -> None:
    write_durable(path, json_bytes(value))
