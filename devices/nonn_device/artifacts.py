"""The files of a student on the device: fetched once, verified, resumed after a cut.

::

    DATA/
        node.key                 who this device is, where there is no TLS
        bundles/<hash>/          a bundle with the manifest and this device's student, all that a node needs
            manifest.json
            students/student-3.onnx
            students/student-3.onnx.part    as much as had come when the link was cut

A file has its name only when its SHA-256 is right, so what is there is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nonn.bundle import Bundle, load_bundle
from nonn.errors import BundleError, DataError
from nonn.files import sha256_file, write_private

__all__ = ["Artifact", "Store"]

Read = Callable[[str, int], AsyncGenerator[bytes, None]]  # path, offset → the rest of the file, in pieces


@dataclass(frozen=True)
class Artifact:
    """A file that a student takes.

    Attributes:
        path: inside the bundle.
        sha256: of its contents, hex.
        size: in bytes.
    """

    path: str
    sha256: str
    size: int


class Store:
    """A device's data folder.

    Args:
        path: the folder; made if it is not there.

    Raises:
        DataError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.fingerprint = hashlib.sha256(self._key()).hexdigest()
        except OSError as exc:
            raise DataError(
                f"{path}: cannot be used for the node's data ({exc.strerror}); name another: --data"
            ) from exc

    def _key(self) -> bytes:
        """The device's key, made at the first start; only its owner may read it."""
        file = self.path / "node.key"
        # Empty is what a power cut may leave of a new file, and would be the same key on every device.
        if not file.exists() or not file.stat().st_size:
            write_private(file, secrets.token_hex(32).encode())
        return file.read_bytes()

    def folder(self, bundle: str) -> Path:
        """Where the files of a bundle are."""
        return self.path / "bundles" / bundle

    def held(self) -> tuple[str, int] | None:
        """The newest student that is here: hash of its bundle and its number; None if there is none."""
        folders = sorted((self.path / "bundles").glob("*/"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in folders:
            with contextlib.suppress(BundleError, OSError, ValueError):
                student = int((folder / "student").read_text())
                return load_bundle(folder, device=student).hash, student
        return None

    async def fetch(self, bundle: str, student: int, artifacts: list[Artifact], read: Read) -> Bundle:
        """Completes the files of a student.

        Args:
            bundle: its hash.
            student: its number.
            artifacts: what it takes.
            read: reads a file of the aggregator from an offset on; whatever it raises goes through, and the next call
                goes on where this one ended.

        Returns:
            The bundle, loaded and verified.

        Raises:
            BundleError: a file is not what its hash says, or has a path outside the bundle.
            DataError: it does not fit on the disk, or cannot be written.
        """
        folder = self.folder(bundle)
        for artifact in artifacts:
            path = PurePosixPath(artifact.path)
            if path.is_absolute() or ".." in path.parts or "\\" in artifact.path:
                raise BundleError(f"'{artifact.path}' lies outside the bundle; is that aggregator to be trusted?")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            missing = sum(artifact.size for artifact in artifacts if not (folder / artifact.path).exists())
            if missing > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for artifact in artifacts:
                await _fetch(folder / artifact.path, artifact, read)
            temporary = folder / "student.part"
            temporary.write_text(f"{student}\n")
            temporary.replace(folder / "student")
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                total = sum(artifact.size for artifact in artifacts)
                raise DataError(
                    f"{folder}: no space left for student {student} ({total} bytes); free some, or name another folder "
                    "with --data"
                ) from exc
            raise DataError(f"{exc.filename or folder}: cannot be written ({exc.strerror})") from exc
        complete = load_bundle(folder, device=student)
        for other in (self.path / "bundles").iterdir():
            if other != folder:  # a device's disk is small
                shutil.rmtree(other, ignore_errors=True)
        return complete


async def _fetch(target: Path, artifact: Artifact, read: Read) -> None:
    """Completes one file, unless it is there."""
    # Hashing and fsync of a student take seconds on an SD card: not in the event loop.
    part = await asyncio.to_thread(_begin, target, artifact)
    if part is None:
        return
    with part.open("ab") as file:
        async with contextlib.aclosing(read(artifact.path, file.tell())) as pieces:
            async for data in pieces:
                file.write(data)
                if file.tell() > artifact.size:
                    break  # more than was promised: the hash will not fit either
    await asyncio.to_thread(_finish, part, target, artifact)


def _begin(target: Path, artifact: Artifact) -> Path | None:
    """The file to write to, which may have a beginning; None where the target is complete."""
    if target.exists() and sha256_file(target) == artifact.sha256:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    if part.exists() and part.stat().st_size > artifact.size:
        part.unlink()
    return part


def _finish(part: Path, target: Path, artifact: Artifact) -> None:
    """Verifies what was written and gives it its name."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    if sha256_file(part) != artifact.sha256:
        # Not to be resumed: the next attempt starts from nothing.
        part.unlink()
        raise BundleError(
            f"{artifact.path}: what came is not what was announced (sha256 {artifact.sha256[:12]}…); the aggregator's "
            "bundle has changed, or the link alters data"
        )
    part.replace(target)
