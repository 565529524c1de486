"""The files of a student on the device: fetched once, verified, resumed after an interruption.

::

    DATA/
        node.key                 key that identifies this device without TLS
        bundles/<hash>/          a bundle with the manifest and this device's student, all that a node needs
            manifest.json
            students/student-3.onnx
            students/student-3.onnx.part    a partial download, resumed by the next fetch

A file gets its final name only after its SHA-256 has been verified, so files are always complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nonn.bundle import MANIFEST, Bundle, load_bundle
from nonn.errors import BundleError, DataError
from nonn.files import is_digest, sha256_file, write_private

__all__ = ["Artifact", "Store"]

_DISTRUST = "check that the aggregator is trustworthy"

Read = Callable[[str, int], AsyncGenerator[bytes, None]]  # path, offset → the rest of the file, in pieces


@dataclass(frozen=True)
class Artifact:
    """A file that a student needs.

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
        path: the folder; created if missing.

    Raises:
        DataError: the folder cannot be written.
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
        """The device's key, created at the first start; only its owner may read it."""
        file = self.path / "node.key"
        # A power cut may leave a new file empty, and an empty key would be the same on every device.
        if not file.exists() or not file.stat().st_size:
            write_private(file, secrets.token_hex(32).encode())
        return file.read_bytes()

    def folder(self, bundle: str) -> Path:
        """Folder of a bundle's files."""
        return self.path / "bundles" / bundle

    def held(self) -> tuple[str, int] | None:
        """The newest student on the device: hash of its bundle and its number; None if there is none."""
        folders = sorted((self.path / "bundles").glob("*/"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in folders:
            with contextlib.suppress(BundleError, OSError, ValueError):
                student = int((folder / "student").read_text())
                return load_bundle(folder, device=student).hash, student
        return None

    async def fetch(self, bundle: str, student: int, artifacts: list[Artifact], read: Read) -> Bundle:
        """Fetches the missing files of a student.

        Args:
            bundle: hash of the bundle.
            student: number of the student.
            artifacts: the files that it needs.
            read: reads a file of the aggregator from an offset on; its errors are raised, and the next call resumes
                where this one ended.

        Returns:
            The bundle, loaded and verified.

        Raises:
            BundleError: the hash of the bundle is not one, or not that of its manifest; a file does not match its
                hash, or is neither the manifest nor the student.
            DataError: the files do not fit on the disk, or cannot be written.
        """
        _check_names(bundle, artifacts)
        folder = self.folder(bundle)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            missing = sum(artifact.size for artifact in artifacts if not (folder / artifact.path).exists())
            if missing > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            manifest, *others = sorted(artifacts, key=lambda artifact: artifact.path != MANIFEST)
            await _fetch(folder / MANIFEST, manifest, read)
            files = _files_of(folder / MANIFEST, student)
            for artifact in others:
                if artifact.path not in files:
                    raise BundleError(f"'{artifact.path}' is not a file of student {student}; {_DISTRUST}")
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


def _check_names(bundle: str, artifacts: Sequence[Artifact]) -> None:
    """Refuses names that could lead outside the folder of bundles: an aggregator chooses them."""
    if not is_digest(bundle):
        raise BundleError(f"'{bundle[:80]}' is not the hash of a bundle; {_DISTRUST}")
    for artifact in artifacts:
        path = PurePosixPath(artifact.path)
        if path.is_absolute() or ".." in path.parts or "\\" in artifact.path:
            raise BundleError(f"'{artifact.path}' is outside the bundle; {_DISTRUST}")
    if [artifact.sha256 for artifact in artifacts if artifact.path == MANIFEST] != [bundle]:
        raise BundleError(f"the hash of bundle {bundle[:12]}… is not that of one {MANIFEST}; {_DISTRUST}")


def _files_of(manifest: Path, student: int) -> list[str]:
    """Files of a student, by a manifest whose hash has been verified."""
    try:
        students = json.loads(manifest.read_bytes())["students"]
        return [str(entry["file"]) for entry in students if entry["device"] == student]
    except (ValueError, KeyError, TypeError) as exc:
        raise BundleError(f"{manifest}: not a manifest ({type(exc).__name__}: {exc})") from exc


async def _fetch(target: Path, artifact: Artifact, read: Read) -> None:
    """Fetches one file unless it is complete."""
    # Hashing and fsync of a student take seconds on an SD card: not in the event loop.
    part = await asyncio.to_thread(_begin, target, artifact)
    if part is None:
        return
    with part.open("ab") as file:
        async with contextlib.aclosing(read(artifact.path, file.tell())) as pieces:
            async for data in pieces:
                file.write(data)
                if file.tell() > artifact.size:
                    break  # longer than announced: the hash will not match either
    await asyncio.to_thread(_finish, part, target, artifact)


def _begin(target: Path, artifact: Artifact) -> Path | None:
    """The partial file to append to; None if the target is complete."""
    if target.exists() and sha256_file(target) == artifact.sha256:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    if part.exists() and part.stat().st_size > artifact.size:
        part.unlink()
    return part


def _finish(part: Path, target: Path, artifact: Artifact) -> None:
    """Verifies the complete file and renames it."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    if sha256_file(part) != artifact.sha256:
        # Must not be resumed: the next attempt starts from the beginning.
        part.unlink()
        raise BundleError(
            f"{artifact.path}: the received file does not match its announced hash (sha256 {artifact.sha256[:12]}…); "
            "the aggregator's bundle has changed, or the link alters data"
        )
    part.replace(target)
