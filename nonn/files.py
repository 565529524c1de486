"""Atomic writes, and hashes.

A file or folder is written under a temporary name next to its target and renamed when complete. A reader sees the old
state or the new one, never a mixture, even if the writer is killed. Durable writes also survive a power cut: the
contents are on the disk before the name is, and the name before the function returns. A device, a pipe or
``/dev/stdout`` is written directly: a rename would replace it.

An existing folder is exchanged with the new one in one step, ``renameat2`` of Linux. Where the file system cannot do
that, it is moved aside for a moment; the next write puts it back if the writer was killed in that moment.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_file",
    "atomic_folder",
    "canonical_json",
    "digest",
    "is_digest",
    "json_bytes",
    "numpy_reason",
    "sha256_file",
    "write_durable",
    "write_json",
    "write_private",
]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_STREAMS = ("/dev", "/dev/fd", "/proc/self/fd")  # open files by name, also of regular files that a shell redirects to
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON as lower-case hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def is_digest(text: str) -> bool:
    """Whether a text can be a SHA-256 in lower-case hex, such as the hash of a bundle."""
    return _DIGEST.fullmatch(text) is not None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; renames it to ``path`` if the block succeeds, else removes it.

    If ``path`` is no regular file, such as ``/dev/stdout``, it is yielded itself.
    """
    direct = path.exists() and not path.is_dir() and (not path.is_file() or str(path.parent) in _STREAMS)
    temporary = path if direct else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if not direct:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # of a killed process with the same number, as every container has
    try:
        yield temporary
        if not direct:
            temporary.replace(path)
    except OSError as exc:
        if exc.errno is None or exc.filename not in (None, str(temporary)):
            raise
        # Errors of write() carry no file name, and the temporary name would not help the reader of the message.
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
    finally:
        if not direct:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary folder next to ``path``; it replaces ``path`` as a whole if the block succeeds.

    Args:
        path: the folder.
        durable: sync the new folder to the disk before it gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.old")
    if aside.exists():  # an earlier writer was killed
        _remove(aside) if path.exists() else aside.rename(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if durable:
            for part in (*temporary.rglob("*"), temporary):
                _sync(part)
        if not path.exists():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            path.rename(aside)
            temporary.rename(path)
            _remove(aside)
        if durable:
            _sync(path.parent)
    except OSError as exc:
        if exc.errno is None or not str(exc.filename).startswith(f"{temporary}"):
            raise
        raise OSError(exc.errno, exc.strerror, str(exc.filename).replace(str(temporary), str(path), 1)) from exc
    finally:
        _remove(temporary)  # after an exchange, the old folder


def _remove(folder: Path) -> None:
    """Removes a folder, or a link to one."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges the names of two folders in one step; false if the system cannot."""
    import ctypes  # few commands write folders

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if not rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def _sync(path: Path) -> None:
    """Waits until the contents of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numpy_reason(exc: Exception) -> str:
    """Why NumPy cannot read a file, without its advice to load pickles: a pickle may run any code."""
    return "not a NumPy file, or it contains Python objects" if "pickle" in str(exc) else str(exc)


def json_bytes(value: Any) -> bytes:
    """JSON for files that people read: indented, in UTF-8, with a final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(json_bytes(value))


def write_durable(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file atomically and durably; at every moment it has at most the permissions ``mode``."""
    with atomic_file(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(path.parent)


def write_private(path: Path, content: bytes) -> None:
    """Like ``write_durable``; only its owner can read the file."""
    write_durable(path, content, 0o600)
