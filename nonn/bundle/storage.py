"""Writes a bundle atomically, and loads one with every hash verified."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.bundle import Bundle
from nonn.bundle.manifest import ACCURACY, MANIFEST, OUTCOMES, Manifest, parse_manifest
from nonn.bundle.self_contained import check_self_contained
from nonn.errors import BundleError, NonnError
from nonn.files import atomic_folder, sha256_file, write_json

if TYPE_CHECKING:
    from nonn.reliability.evidence import Evidence
    from nonn.reliability.sampled_evidence import SampledEvidence

__all__ = ["evidence_arrays", "load_bundle", "write_bundle"]


def evidence_arrays(
    evidence: Evidence | SampledEvidence, teacher: NDArray[np.bool_] | None = None
) -> dict[str, dict[str, NDArray[Any]]]:
    """The arrays of accuracy.npz and outcomes.npz, by file.

    Args:
        evidence: accuracy of all subsets, or of a sample of them, with outcomes if there are any.
        teacher: whether the teacher classifies each sample of the outcomes correctly [m].
    """
    from nonn.reliability.sampled import SampledTable  # a device writes none

    table, outcomes = evidence.table, evidence.outcomes
    counts = {"correct": table.correct, "samples": np.array(table.samples)}
    found = {ACCURACY: table.to_arrays() if isinstance(table, SampledTable) else counts}
    if outcomes is not None:
        found[OUTCOMES] = {"right": outcomes.packed}
        if teacher is not None:
            found[OUTCOMES]["teacher"] = np.packbits(teacher, bitorder="little")
    return found


def write_bundle(
    path: Path,
    manifest: Manifest,
    students: Mapping[int, bytes],
    arrays: Mapping[str, Mapping[str, NDArray[Any]]],
    further: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Writes a bundle atomically.

    Args:
        path: the folder; an older bundle there is replaced as a whole.
        manifest: this function fills in hashes, sizes and ``files``.
        students: ONNX bytes of each device.
        arrays: contents of each .npz file, by its path in the bundle.
        further: any other files, by their paths in the bundle.

    Returns:
        The bundle, loaded and verified.
    """
    with atomic_folder(path) as folder:
        entries, files = [], {}
        for student in manifest.students:
            data = students[student.device]
            target = folder / student.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            entries.append(dataclasses.replace(student, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)))
        for name, content in arrays.items():
            np.savez_compressed(folder / name, allow_pickle=False, **content)
            files[name] = sha256_file(folder / name)
        for name, data in (further or {}).items():
            (folder / name).write_bytes(data)
            files[name] = hashlib.sha256(data).hexdigest()
        complete = dataclasses.replace(manifest, students=tuple(entries), files=files)
        write_json(folder / MANIFEST, complete.to_json())
        load_bundle(folder)
    return load_bundle(path)


def load_bundle(path: str | Path, *, device: int | None = None) -> Bundle:
    """Loads a bundle and verifies its hashes.

    Args:
        path: its folder.
        device: verify only this device's student; the other files may be missing, as on a node.

    Raises:
        BundleError: a file is missing, truncated or altered, the manifest is invalid, or a student has values in a file
            that is not in the bundle; the message names the file.
    """
    path = Path(path)
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        near = [folder for folder in (path / "bundle", path.parent) if (folder / MANIFEST).is_file()]
        hint = f"{near[0]} is one" if near else "nonn run writes one"
        raise BundleError(f"{file}: no such file; {path} is not a bundle ({hint})") from None
    except OSError as exc:
        raise BundleError(f"{file}: cannot be read ({exc})") from exc
    try:
        manifest = parse_manifest(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BundleError(f"{file}: not a manifest ({type(exc).__name__}: {exc}); build the bundle again") from exc
    except NonnError as exc:
        raise BundleError(f"{file}: {exc}") from exc
    bundle = Bundle(path, hashlib.sha256(raw).hexdigest(), manifest)
    if device is not None:
        bundle.student_path(device)
    wanted = {s.file: s.sha256 for s in manifest.students if device in (None, s.device)}
    for name, expected in wanted.items() if device is not None else (wanted | dict(manifest.files)).items():
        _verify(path, name, expected)
    for student in manifest.students:
        if device in (None, student.device):
            check_self_contained(path / student.file)
    return bundle


def _verify(path: Path, name: str, expected: str) -> None:
    """Checks one file of a bundle against its hash."""
    target = path / name
    if not target.resolve().is_relative_to(path.resolve()):
        raise BundleError(f"{path / MANIFEST}: file '{name}' is outside the bundle")
    try:
        actual = sha256_file(target)
    except OSError as exc:
        raise BundleError(f"{target}: cannot be read ({exc.strerror}); copy or build the bundle again") from exc
    if actual != expected:
        raise BundleError(
            f"{target}: truncated or altered (sha256 {actual[:12]}…, in the manifest {expected[:12]}…); "
            "copy or build the bundle again"
        )
