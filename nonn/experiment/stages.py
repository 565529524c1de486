"""Stages of a run: one folder each, keyed by a hash of its inputs.

``runs/<experiment>/<stage>/stage.json`` contains the key. A finished stage with an unchanged key is not run again; an
interrupted one resumes from its files. When the inputs change, the old folder is renamed to ``<stage>.<key>``, and back
when the inputs return: a changed option never loses a trained teacher.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonn.errors import ConfigError
from nonn.files import atomic_folder, digest, write_json

__all__ = ["STAGE", "Stage", "exclusive", "is_done", "open_stage"]

STAGE = "stage.json"  # in the folder of every stage


@dataclass(frozen=True)
class Stage:
    """One stage of one run.

    Attributes:
        folder: folder of its files.
        key: hash of its inputs.
    """

    folder: Path
    key: str

    @property
    def done(self) -> bool:
        """Whether it has finished."""
        return is_done(self.folder)

    def finish(self) -> None:
        """Marks it as finished; every file must be written by now."""
        write_json(self.folder / STAGE, _read(self.folder) | {"done": True})


def is_done(folder: Path) -> bool:
    """Whether the stage in a folder has finished."""
    return bool(_read(folder).get("done"))


def open_stage(root: Path, name: str, inputs: Mapping[str, Any]) -> Stage:
    """Opens the folder of a stage, with the files of an earlier run with the same inputs.

    Args:
        root: ``runs/<experiment>``.
        name: name of the stage.
        inputs: all inputs of its result, as JSON values.
    """
    key, folder = digest(inputs), root / name
    if folder.exists():
        old = _read(folder).get("key", "unknown")
        if old == key:
            return Stage(folder, key)
        folder.rename(_free(root / f"{name}.{old[:12]}"))
    aside = root / f"{name}.{key[:12]}"
    if aside.exists() and _read(aside).get("key") == key:
        aside.rename(folder)
    else:
        with atomic_folder(folder) as fresh:
            write_json(fresh / STAGE, {"key": key, "done": False, "inputs": inputs})
    return Stage(folder, key)


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Locks the folder of a run for this process.

    Raises:
        ConfigError: another process uses it, or it cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("a")
    except OSError as exc:
        raise ConfigError(f"{root}: cannot be written ({exc.strerror}); choose another folder with --runs") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{root}: another run is at work there; wait for it, or name the experiment otherwise"
            ) from None
        yield


def _read(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / STAGE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return values


def _free(path: Path) -> Path:
    """The path, or the first unused numbered variant of it."""
    candidate, number = path, 1
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate
