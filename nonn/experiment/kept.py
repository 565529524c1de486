"""Earlier bundles and set-aside stages of runs: what a folder of runs holds, and what may be removed.

::

    runs/<experiment>/bundle                  the bundle of the last run
    runs/<experiment>/bundles/<hash>          earlier bundles, by the first twelve digits of their hash
    runs/<experiment>/bundles/<hash>.keep     marks a bundle that ``clean`` leaves alone
    runs/<experiment>/<stage>.<key>           stages with other inputs; see ``nonn.experiment.stages``

A run that builds another bundle moves the old one to ``bundles/``, and back when its inputs return. Needs no torch.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonn.bundle import Bundle, load_bundle
from nonn.bundle.manifest import MANIFEST
from nonn.errors import BundleError, UsageError
from nonn.experiment.stages import STAGE, exclusive, is_done
from nonn.files import atomic_folder, sha256_file

__all__ = ["Run", "clean", "differences", "find_bundle", "keep", "list_runs", "remove", "restore", "set_aside"]

DIGITS = 12  # of a hash in names and messages
_ASIDE = re.compile(r".+\.[0-9a-f]{12}(\.\d+)?|.+\.unknown(\.\d+)?")


@dataclass(frozen=True)
class Run:
    """One folder of runs.

    Attributes:
        name: name of the experiment.
        bundle: the bundle of the last run; None before there is one, or if it cannot be read.
        earlier: hashes of the earlier bundles.
        stages: stage → whether it is finished.
        bytes: size of all files.
    """

    name: str
    bundle: Bundle | None
    earlier: tuple[str, ...]
    stages: Mapping[str, bool]
    bytes: int


def list_runs(runs: Path) -> list[Run]:
    """The runs of a folder, by name.

    Raises:
        UsageError: there is no such folder.
    """
    if not runs.is_dir():
        raise UsageError(f"{runs}: no such folder; nonn run makes it, or name another one with --runs")
    return [_run(folder) for folder in sorted(runs.iterdir()) if folder.is_dir() and _stages(folder)]


def find_bundle(runs: Path, name: str) -> Bundle:
    """A bundle by ``NAME``, ``NAME@HASH`` or the path of its folder.

    Args:
        runs: folder of all runs.
        name: the first digits of the hash are enough.

    Raises:
        BundleError, UsageError: there is no such bundle, or it cannot be loaded.
    """
    run, at, digits = name.partition("@")
    if (Path(name) / MANIFEST).exists():
        return load_bundle(name)
    folders = _bundles(runs / run)
    if not folders:
        known = ", ".join(each.name for each in list_runs(runs)) or "none"
        raise UsageError(f"{name}: no bundle, and {runs / run} has none; runs there: {known}")
    found = [folder for hash_, folder in folders.items() if hash_.startswith(digits)]
    if at and len(found) != 1:
        known = ", ".join(hash_[:DIGITS] for hash_ in folders)
        raise UsageError(f"{name}: {len(found) or 'no'} bundles have that hash; bundles of the run: {known}")
    return load_bundle(found[0])


def differences(first: Bundle, second: Bundle) -> dict[str, tuple[Any, Any]]:
    """Options in which the experiments of two bundles differ: key → (first, second); None where one has no such key."""
    trees = [_flat(bundle.manifest.provenance.get("config", {})) for bundle in (first, second)]
    keys = dict.fromkeys([*trees[0], *trees[1]])
    pairs = {key: (trees[0].get(key), trees[1].get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def keep(runs: Path, name: str) -> Bundle:
    """Marks a bundle, so that ``clean`` leaves it alone also after another run has replaced it.

    Raises:
        BundleError, UsageError: as ``find_bundle``; or it does not belong to a run.
    """
    bundle = find_bundle(runs, name)
    root = runs / name.partition("@")[0]
    if bundle.path.parent not in (root, root / "bundles"):
        raise UsageError(f"{name}: not a bundle of a run in {runs}; write NAME or NAME@HASH")
    (root / "bundles").mkdir(exist_ok=True)
    _mark(root, bundle.hash).touch()
    return bundle


def clean(runs: Path, name: str = "") -> Iterator[tuple[Path, int]]:
    """Set-aside stages and earlier bundles that are not marked; nothing is removed while it is iterated.

    Args:
        runs: folder of all runs.
        name: a run; empty for all.

    Yields:
        Folder and size in bytes.

    Raises:
        UsageError: there is no such run.
    """
    if name and not (runs / name).is_dir():
        raise UsageError(f"{runs / name}: no such run")
    for root in [runs / name] if name else sorted(folder for folder in runs.iterdir() if folder.is_dir()):
        aside = [path for path in sorted(root.iterdir()) if _ASIDE.fullmatch(path.name) and (path / STAGE).exists()]
        old = [folder for hash_, folder in _earlier(root).items() if not _mark(root, hash_).exists()]
        yield from ((folder, _size(folder)) for folder in [*aside, *old])


def remove(folder: Path) -> None:
    """Removes a folder that ``clean`` has found.

    Raises:
        UsageError: a run is at work there.
    """
    root = folder.parent.parent if folder.parent.name == "bundles" else folder.parent
    with exclusive(root):
        shutil.rmtree(folder)


def set_aside(bundle: Path) -> tuple[str, Path] | None:
    """Keeps a copy of a bundle that is about to be replaced.

    Args:
        bundle: its folder.

    Returns:
        Its hash and its new place; None if there is no bundle.
    """
    if not (bundle / MANIFEST).exists():
        return None
    hash_ = sha256_file(bundle / MANIFEST)
    place = bundle.parent / "bundles" / hash_[:DIGITS]
    _copy(bundle, place)
    return hash_, place


def restore(bundle: Path, hash_: str) -> Bundle | None:
    """Puts an earlier bundle back in its place; None if it was not kept or cannot be loaded.

    Args:
        bundle: the place.
        hash_: hash of the bundle.
    """
    place = bundle.parent / "bundles" / hash_[:DIGITS]
    try:
        if load_bundle(place).hash != hash_:
            return None
    except BundleError:
        return None
    if (bundle / MANIFEST).exists() and sha256_file(bundle / MANIFEST) != hash_:  # else it is the same, but damaged
        set_aside(bundle)
    _copy(place, bundle)
    shutil.rmtree(place)
    return load_bundle(bundle)


def _run(folder: Path) -> Run:
    try:
        bundle = load_bundle(folder / "bundle")
    except BundleError:
        bundle = None
    stages = {path.name: is_done(path) for path in _stages(folder) if not _ASIDE.fullmatch(path.name)}
    return Run(folder.name, bundle, tuple(_earlier(folder)), stages, _size(folder))


def _stages(root: Path) -> list[Path]:
    return sorted(file.parent for file in root.glob(f"*/{STAGE}"))


def _bundles(root: Path) -> dict[str, Path]:
    """Folders of all bundles of a run by their hash, that of the last run first."""
    current = root / "bundle"
    found = {sha256_file(current / MANIFEST): current} if (current / MANIFEST).exists() else {}
    return {**found, **{hash_: folder for hash_, folder in _earlier(root).items() if hash_ not in found}}


def _earlier(root: Path) -> dict[str, Path]:
    return {sha256_file(file): file.parent for file in sorted(root.glob(f"bundles/*/{MANIFEST}"))}


def _mark(root: Path, hash_: str) -> Path:
    return root / "bundles" / f"{hash_[:DIGITS]}.keep"


def _copy(source: Path, target: Path) -> None:
    with atomic_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
