"""Collects all wheels of a device in one folder, so that the device needs neither compiler nor network.

    python scripts/wheelhouse.py                       # ./wheelhouse for 64-bit Pi OS bookworm and trixie
    python scripts/wheelhouse.py --extra serve         # also the packages of the aggregator
    python scripts/wheelhouse.py --dry-run             # only checks that every package has a wheel

It runs ``pip download`` with the tags of the target and for wheels only, so a package that would be compiled on the
device is an error here. Wheels that depend on the Python version are present for each version. ``wheels.json`` lists,
for each version and for nodes and aggregators, the wheels that one needs with their hashes: the playbook copies those
only, and installs again if a hash has changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nonn.files import sha256_file, write_json

HERE = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.13")  # Pi OS bookworm and trixie
LIST = "wheels.json"
# Newest first, up to the glibc 2.36 of bookworm; pip accepts only the tags listed here.
GLIBCS = ("2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17")


def pip_download(folder: Path, python: str, machine: str, wanted: list[str], *, dry_run: bool) -> None:
    """Fetches the wheels for one version of Python.

    Raises:
        CalledProcessError: a package has no wheel for it; pip prints which.
    """
    command = [sys.executable, "-m", "pip"]
    command += ["install", "--dry-run", "--ignore-installed", "--target", str(folder)] if dry_run else ["download"]
    command += [] if dry_run else ["--dest", str(folder)]
    command += ["--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--python-version", python]
    command += ["--implementation", "cp", "--constraint", str(HERE / "constraints.txt")]
    for glibc in GLIBCS:
        command += ["--platform", f"manylinux_{glibc}_{machine}"]
    command += ["--platform", f"manylinux2014_{machine}"]
    subprocess.run([*command, *wanted], check=True)


def write_list(folder: Path, needed: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Writes the list of wheels.

    Args:
        folder: with the wheels.
        needed: version of Python → ``node`` or ``aggregator`` → names of wheels.
    """
    listed = {
        python: {
            role: {name: sha256_file(folder / name) for name in sorted(names)} for role, names in sorted(roles.items())
        }
        for python, roles in needed.items()
    }
    write_json(folder / LIST, listed)


def main() -> None:
    """Builds the wheel of nonn, and downloads its dependencies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("wheelhouse"), help="default: %(default)s")
    parser.add_argument("--python", action="append", choices=("3.11", "3.12", "3.13"), help="default: 3.11 and 3.13")
    parser.add_argument("--machine", default="aarch64", choices=("aarch64", "x86_64"), help="default: %(default)s")
    parser.add_argument("--extra", action="append", default=[], help="also an extra of nonn, such as serve")
    parser.add_argument("--dry-run", action="store_true", help="only resolve; download nothing but metadata")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for old in args.folder.glob("nonn-*.whl"):
        old.unlink()  # of an older checkout; pip on the device could choose it
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(args.folder), str(HERE)]
    subprocess.run(build, check=True)
    wheel = next(args.folder.glob("nonn-*.whl")).resolve()
    extras = {"node": "", **({"aggregator": f"[{','.join(args.extra)}]"} if args.extra else {})}
    needed: dict[str, dict[str, list[str]]] = {}
    for python in args.python or PYTHONS:
        for role, extra in extras.items():
            with tempfile.TemporaryDirectory(dir=args.folder) as name:
                wanted = [f"nonn{extra} @ {wheel.as_uri()}"]
                pip_download(Path(name), python, args.machine, wanted, dry_run=args.dry_run)
                found = [file.rename(args.folder / file.name).name for file in Path(name).glob("*.whl")]
            needed.setdefault(python, {})[role] = found
    if not args.dry_run:
        write_list(args.folder, needed)
    size = sum(file.stat().st_size for file in args.folder.glob("*.whl"))
    print(json.dumps({"wheels": len(list(args.folder.glob("*.whl"))), "wheelhouse_mb": round(size / 1e6, 1)}))


if __name__ == "__main__":
    main()
