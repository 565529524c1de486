"""State folder of an aggregator: its bundles, kept between starts.

::

    STATE/
        bundles/<hash>/    complete bundles: the served one, the previous one, the one that is pushed
        current            hash of the served bundle
        previous           hash of the previous one, used by a rollback
        control.sock       socket between `nonn fleet` and the process
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nonn.bundle import MANIFEST, Bundle, load_bundle
from nonn.errors import BundleError, ConfigError, DataError
from nonn.files import atomic_file, atomic_folder

__all__ = ["SOCKET", "State"]

SOCKET = "control.sock"
MAX_SOCKET_PATH = 107  # sockaddr_un of Linux


class State:
    """The folder of ``nonn serve --state``.

    Args:
        path: the folder.

    Raises:
        ConfigError: its path is too long for a socket in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.socket = path, path / SOCKET
        if len(str(self.socket.absolute())) > MAX_SOCKET_PATH:
            raise ConfigError(f"{path}: the path is too long for a socket in it; choose a shorter one")

    def first(self, bundle: Path) -> Bundle:
        """The bundle to serve after a start: the last one that was served, or this one."""
        current = self.read("current")
        if not current:
            current = self.take(bundle).hash
            self.write("current", current)
        return self.load(current)

    def take(self, bundle: Path) -> Bundle:
        """Copies a bundle into the folder, atomically and verified.

        Raises:
            BundleError: the bundle is invalid.
            DataError: it cannot be copied.
        """
        taken = load_bundle(bundle)
        folder = self.path / "bundles" / taken.hash
        if not folder.exists():
            try:
                with atomic_folder(folder) as temporary:
                    names = [MANIFEST, *(s.file for s in taken.manifest.students), *taken.manifest.files]
                    for name in names:
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
        self.write("previous", previous)
        self.write("current", current)
        for folder in (self.path / "bundles").iterdir():
            if folder.name not in (current, previous):
                shutil.rmtree(folder, ignore_errors=True)

    def read(self, name: str) -> str:
        """Reads one of the small files; empty if it is missing."""
        try:
            return (self.path / name).read_text().strip()
        except FileNotFoundError:
            return ""
        except OSError as exc:
            raise DataError(f"{exc.filename}: cannot be read ({exc.strerror})") from exc

    def write(self, name: str, value: str) -> None:
        """Replaces one of the small files."""
        with atomic_file(self.path / name) as temporary:
            temporary.write_text(f"{value}\n")
