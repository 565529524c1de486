"""Builds wheel and sdist into ``dist/``, and runs a node from the wheel in an otherwise empty environment.

    python -m scripts.dist              # run by `make dist`

The wheel is built from the sdist, which proves that the sdist is complete. Both are checked against the tree: the wheel
has exactly the files of the three packages, the sdist all files that the tests need. The wheel is then installed with
the base dependencies only; there each program must print its version, and a node must answer a request for a student of
``examples/bundles/cifar100-small`` like the same student in this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from nonn_device.runtime import open_runtime

from nonn import __version__
from nonn.bundle import load_bundle
from scripts.base_install import HERE, PACKAGES, bare_environment, features_from_node

DIST = HERE / "dist"
BUNDLE = HERE / "examples" / "bundles" / "cifar100-small"
# Files that packaging easily loses, since no import names them: a marker, a network, C, a template, stubs, a page.
NOT_CODE = (
    *(f"{package}/py.typed" for package in ("nonn", "nonn_device", "nonn_sim")),
    *("nonn_device/probe.onnx", "/integer.c", ".html.j2", "_pb2.pyi"),
    *("/web/index.html", "/web/app.js", "/web/style.css"),
)
# Files that the tests need in addition to the packages.
IN_SDIST = (
    *("pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE", "CHANGELOG.md"),
    *("benchmarks/", "devices/pi/", "docs/", "examples/", "proto/", "scripts/", "tests/"),
)


class DistError(Exception):
    """A built file is wrong."""


def package_files() -> set[str]:
    """Files of the three packages in this tree, with their names in a wheel."""
    roots = [HERE / package for package in PACKAGES]
    files = (path.relative_to(root.parent) for root in roots for path in root.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def check_wheel(names: Collection[str], expected: Collection[str]) -> None:
    """Checks the names in a wheel.

    Args:
        names: names of its files.
        expected: names of the files of the packages.

    Raises:
        DistError: files are missing or unexpected; the message names them.
    """
    metadata = f"nonn-{__version__}.dist-info/"
    found = {name for name in names if not name.startswith(metadata)}
    missing = sorted({*expected} - found) + [end for end in NOT_CODE if not any(name.endswith(end) for name in found)]
    _refuse("wheel", missing, found - {*expected})


def check_sdist(names: Iterable[str], expected: Collection[str]) -> None:
    """Checks the names in an sdist, which are below one folder.

    Raises:
        DistError: files are missing; the message names them.
    """
    found = {name.partition("/")[2] for name in names}
    missing = [name for name in IN_SDIST if not any(x == name or x.startswith(name) for x in found)]
    sources = {package.rpartition("/")[2]: package for package in PACKAGES}
    for name in expected:
        package, _, rest = name.partition("/")
        if f"{sources[package]}/{rest}" not in found:
            missing.append(name)
    _refuse("sdist", missing, [name for name in found if "__pycache__" in name])


def _refuse(kind: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    if missing:
        raise DistError(f"the {kind} lacks {', '.join(sorted(missing))}; see [tool.hatch.build] in pyproject.toml")
    if unexpected:
        raise DistError(f"the {kind} should not have {', '.join(sorted(unexpected))}")


def build(folder: Path = DIST) -> tuple[Path, Path]:
    """Builds both with the installed hatchling, and checks their files.

    Returns:
        The wheel and the sdist.

    Raises:
        CalledProcessError: the build fails.
        DistError: files are missing or unexpected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("nonn-*"):
        old.unlink()
    _run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder)
    sdist = folder / f"nonn-{__version__}.tar.gz"
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
    _run(*pip, "--no-build-isolation", "--wheel-dir", folder, sdist)
    wheel = folder / f"nonn-{__version__}-py3-none-any.whl"
    expected = package_files()
    with zipfile.ZipFile(wheel) as archive:
        check_wheel(archive.namelist(), expected)
    with tarfile.open(sdist) as archive:
        check_sdist(archive.getnames(), expected)
    return wheel, sdist


def try_out(wheel: Path, folder: Path) -> None:
    """Installs a wheel in a new environment, asks each program for its version and a node for an answer.

    Raises:
        CalledProcessError: the installation or a program fails.
        DistError: a program or the node gives a wrong answer.
    """
    python = bare_environment(folder, str(wheel))
    for program in ("nonn", "nonn-device", "nonn-sim"):
        printed = _run(python.with_name(program), "--version", cwd=folder)
        if printed != f"{program} {__version__}\n":
            raise DistError(f"{program} --version prints {printed!r}, not {__version__}")
    bundle = load_bundle(BUNDLE, device=0)
    spec = bundle.input_of(0)
    inputs = np.random.default_rng(0).integers(0, 256, (4, *spec.shape)).astype(np.uint8)
    answered = features_from_node(python, BUNDLE, 0, inputs)
    code = bundle.manifest.students[0].code
    expected = code.encode(open_runtime("onnx", bundle, 0).run(inputs)).astype(int)  # both are sent as bytes
    if answered.shape != expected.shape or np.abs(answered.astype(int) - expected).max() > 1:
        raise DistError(f"the node of the wheel and this process give different answers for a student of {BUNDLE}")


def _run(*command: str | Path, cwd: Path = HERE) -> str:
    """Runs a command without Python's environment variables, and returns its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    """Builds, checks and tries both, and lists dist/."""
    try:
        wheel, sdist = build()
        with tempfile.TemporaryDirectory() as folder:
            try_out(wheel, Path(folder) / "environment")
    except (DistError, RuntimeError, subprocess.CalledProcessError) as exc:
        print(f"dist: {exc}", file=sys.stderr)
        return 1
    megabytes = {path.name: round(path.stat().st_size / 1e6, 2) for path in (wheel, sdist)}
    print(json.dumps({"version": __version__, "mb": megabytes, "serves_from_wheel": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
