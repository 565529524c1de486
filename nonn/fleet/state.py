"""State folder of an aggregator, kept between starts: its bundles, and which of them it serves.

::

    STATE/
        bundles/<hash>/    complete bundles: the served one, the previous one, the one that is pushed
        state.json         what is served, see ``StateRecord``
        control.sock       socket between `nonn fleet` and the process

``state.json`` is one document with a checksum, written atomically and durably, so that a kill or a power cut leaves the
record before or after a change. A bundle is complete on the disk before the record names it, and is deleted only after
the record no longer does. A document that is damaged nevertheless is refused: serving a bundle that the operator did
not choose is worse than not starting.

A folder of an older version has two files instead, ``current`` and ``previous``; they are read once and replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nonn.bundle import MANIFEST, Bundle, load_bundle
from nonn.errors import BundleError, ConfigError, DataError
from nonn.files import atomic_folder, digest, is_digest, json_bytes, write_durable

__all__ = ["DOCUMENT", "SOCKET", "StateFolder", "StateRecord"]

DOCUMENT, SOCKET = "state.json", "control.sock"
SCHEMA = 1
MAX_SOCKET_PATH = 107  # sockaddr_un of Linux

_OLD = ("current", "previous")


@dataclass(frozen=True, kw_only=True)
class StateRecord:
    """The record of an aggregator between starts.

    Attributes:
        current: hash of the served bundle; empty before the first start.
        previous: hash of the bundle before it, for a rollback; empty if there is none.
        drained: ids of drained nodes, in order.
        quarantined: quarantines in a row of each node of the served bundle that is in quarantine.
    """

    current: str = ""
    previous: str = ""
    drained: tuple[str, ...] = ()
    quarantined: Mapping[str, int] = field(default_factory=dict)


class StateFolder:
    """The folder of ``nonn serve --state``.

    Args:
        path: the folder.

    Raises:
        ConfigError: its path is too long for a socket in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.socket, self._document = path, path / SOCKET, path / DOCUMENT
        if len(str(self.socket.absolute())) > MAX_SOCKET_PATH:
            raise ConfigError(f"{path}: the path is too long for a socket in it; choose a shorter one")

    def first(self, bundle: Path) -> Bundle:
        """The bundle to serve after a start: the last one that was served, or this one.

        Raises:
            BundleError: it is missing or altered.
            DataError: the record is damaged, or cannot be read or written.
        """
        record = self.read()
        if not record.current:
            record = dataclasses.replace(record, current=self.take(bundle).hash)
        if not self._document.exists():  # the first start, or the first of this version
            self.write(record)
        try:
            return self.load(record.current)
        except BundleError as exc:
            raise BundleError(f"{exc}; or delete {self._document} to begin with the bundle of the command") from exc

    def take(self, bundle: Path) -> Bundle:
        """Copies a bundle into the folder, atomically, durably and verified.

        Raises:
            BundleError: the bundle is invalid.
            DataError: it cannot be copied.
        """
        taken = load_bundle(bundle)
        folder = self.path / "bundles" / taken.hash
        with contextlib.suppress(BundleError):  # not there, or half deleted by a killed process
            return load_bundle(folder)
        try:
            with atomic_folder(folder, durable=True) as temporary:
                for name in [MANIFEST, *(s.file for s in taken.manifest.students), *taken.manifest.files]:
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(bundle / name, temporary / name)
                self._give(temporary)
        except OSError as exc:
            raise DataError(f"{folder}: the bundle cannot be copied there ({exc.strerror})") from exc
        return load_bundle(folder)

    def _give(self, folder: Path) -> None:
        """Gives files copied by root to the aggregator's user, which deletes them later."""
        if os.geteuid() == 0:
            owner = self.path.stat()
            for path in (folder, *folder.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid)

    def load(self, name: str) -> Bundle:
        """A bundle of the folder by its hash.

        Raises:
            BundleError: it is missing or incomplete.
        """
        if not name or not (self.path / "bundles" / name).is_dir():
            raise BundleError(f"{self.path}: contains no bundle {name[:12] or 'before this one'}; push one first")
        return load_bundle(self.path / "bundles" / name)

    def served(self, current: str, previous: str) -> None:
        """Records another bundle as served; deletes bundles that are neither this nor the previous one."""
        self.write(dataclasses.replace(self.read(), current=current, previous=previous, quarantined={}))
        for folder in (self.path / "bundles").iterdir():
            if folder.name not in (current, previous):
                shutil.rmtree(folder, ignore_errors=True)

    def drained(self, nodes: Sequence[str]) -> None:
        """Records the drained nodes."""
        self.write(dataclasses.replace(self.read(), drained=tuple(nodes)))

    def quarantined(self, nodes: Mapping[str, int]) -> None:
        """Records the nodes in quarantine."""
        self.write(dataclasses.replace(self.read(), quarantined=dict(nodes)))

    def read(self) -> StateRecord:
        """The record; empty before the first start.

        Raises:
            DataError: it is damaged or cannot be read; the message says what to do.
        """
        try:
            content = json.loads(self._document.read_bytes())
            if content.pop("sha256") != digest(content):
                raise ValueError("its checksum is wrong")
            if content.pop("schema") != SCHEMA:
                raise ValueError(f"this version of nonn reads schema {SCHEMA}")
            return StateRecord(**content | {"drained": tuple(content["drained"])})
        except FileNotFoundError:
            return self._read_old()
        except OSError as exc:
            raise DataError(f"{exc.filename}: cannot be read ({exc.strerror})") from exc
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise DataError(f"{self._document}: damaged ({exc}); {self._remedy(DOCUMENT)}") from exc

    def write(self, record: StateRecord) -> None:
        """Replaces the record; on return it is on the disk.

        Raises:
            DataError: it cannot be written.
        """
        content = {"schema": SCHEMA, **dataclasses.asdict(record), "drained": list(record.drained)}
        if not record.quarantined:
            del content["quarantined"]  # an older version does not read it
        try:
            write_durable(self._document, json_bytes(content | {"sha256": digest(content)}))
            for name in _OLD:
                (self.path / name).unlink(missing_ok=True)
        except OSError as exc:
            raise DataError(f"{exc.filename or self._document}: cannot be written ({exc.strerror})") from exc

    def _read_old(self) -> StateRecord:
        """The record of a folder of an older version."""
        found = {}
        for name in _OLD:
            try:
                found[name] = (self.path / name).read_bytes().decode(errors="replace").strip()
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise DataError(f"{exc.filename}: cannot be read ({exc.strerror})") from exc
            if not is_digest(found[name]):
                raise DataError(f"{self.path / name}: not the hash of a bundle; {self._remedy(name)}")
        return StateRecord(current=found.get("current", ""), previous=found.get("previous", ""))

    def _remedy(self, name: str) -> str:
        """What to do about a damaged file."""
        held = sorted(folder.name for folder in (self.path / "bundles").glob("*/"))
        return (
            f"restore it from a backup, or delete {name} to begin with the bundle of the command and without drained "
            f"nodes. The folder has the bundles {', '.join(held) or '(none)'}"
        )
