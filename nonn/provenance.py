"""Provenance of results: the version of the code and the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from nonn import __version__

__all__ = ["code_version", "command_line", "machine"]


@functools.cache
def code_version() -> str:
    """The version of nonn; in a checkout also the commit, and ``.dirty`` if files were changed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=.dirty", "--abbrev=10", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+g{done.stdout.strip()}"


def command_line() -> str:
    """The command line of this process, with the program's name in place of its path."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    name = path.parent.name if path.name == "__main__.py" else path.name
    return shlex.join([name, *arguments])


def machine() -> dict[str, str]:
    """Processor, cores, GPU if torch finds one, and the versions on which speed and results depend."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x.split(":", 1)[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0] if names else model
    found = {"processor": f"{platform.machine()}, {os.cpu_count()} cores, {model}", "python": platform.python_version()}
    for package in ("torch", "numpy", "grpcio", "onnxruntime", "protobuf"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if gpus:
        found["gpu"] = gpus[0].read_text().split("\n")[0].split(":", 1)[1].strip()
    return found
