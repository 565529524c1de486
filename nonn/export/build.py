"""Compiles a student's C: a shared object for nodes, and an object optimised for size to measure flash and RAM.

Flash and RAM are measured with ``-Os``: flash is code, constants and initial values; RAM is static data, including the
activations, and the two largest stack frames, since calls are two deep. They are for the compiler's target, which the
result names: a cross-compiler gives those of its device.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nonn.errors import ConfigError
from nonn.export.c import CSource
from nonn.files import atomic_file

__all__ = ["Footprint", "build_library", "check_compiler", "measure_footprint", "write_source"]

_FAST = ("-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden")
_SMALL = ("-std=c11", "-Os", "-ffunction-sections", "-fdata-sections", "-fstack-usage", "-c")
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Footprint:
    """Memory of a student on a device without an operating system.

    Attributes:
        target: the compiler's name for its target.
        flash_bytes: code, constants and initial values.
        ram_bytes: static data and stack.
        stack_bytes: the stack's share of ``ram_bytes``; None if the compiler does not report it, and then not included.
    """

    target: str
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int | None


def check_compiler(compiler: str) -> tuple[list[str], str]:
    """Splits a compiler's command, and asks for its target.

    Args:
        compiler: a command with its options, such as ``arm-none-eabi-gcc -mcpu=cortex-m7 -mthumb``.

    Returns:
        The command's words, and the target.

    Raises:
        ConfigError: the command does not exist, or is not a C compiler.
    """
    try:
        command = shlex.split(compiler)
        done = subprocess.run([*command, "-dumpmachine"], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as exc:
        raise ConfigError(
            f"--cc '{compiler}': cannot be run ({exc}); install a C compiler (apt install gcc), or give another"
        ) from exc
    if done.returncode or not done.stdout.strip():
        raise ConfigError(f"--cc '{compiler}': does not report its target (-dumpmachine): {_last(done.stderr)}")
    return command, done.stdout.strip()


def write_source(source: CSource, folder: Path) -> Path:
    """Writes student.c and student.h; returns the path of student.c."""
    for name, text in (("student.h", source.header), ("student.c", source.source)):
        with atomic_file(folder / name) as file:
            file.write_text(text)
    return folder / "student.c"


def build_library(compiler: Sequence[str], source: Path) -> Path:
    """Compiles student.c into student.so next to it, and returns its path.

    Raises:
        ConfigError: the compiler failed; the message has its output.
    """
    library = source.with_suffix(".so")
    with atomic_file(library) as file:
        _compile([*compiler, *_FAST, "-o", str(file), str(source), "-lm"])
    return library


def measure_footprint(compiler: Sequence[str], target: str, source: Path) -> Footprint:
    """Compiles for size and adds up the sections.

    Raises:
        ConfigError: the compiler failed, or the command ``size`` cannot read its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "student.o"
        _compile([*compiler, *_SMALL, "-o", str(made), str(source)])
        try:
            command = ["size", "-A", "-d", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        except (OSError, subprocess.SubprocessError) as exc:
            raise ConfigError(f"the sizes cannot be read: 'size' fails ({exc}); apt install binutils") from exc
        usage = made.with_suffix(".su")
        frames = usage.read_text().splitlines() if usage.exists() else []
    sections = [line.split() for line in done.stdout.splitlines() if line.startswith(".")]
    size = dict.fromkeys(("text", "rodata", "data", "bss"), 0)
    for name, length, *_ in sections:
        # -fdata-sections: .rodata.weight1, .bss.arena and so on.
        kind = name.split(".")[1]
        size[kind] = size.get(kind, 0) + int(length)
    stack = sum(sorted(int(frame.split("\t")[1]) for frame in frames)[-2:]) if frames else None
    return Footprint(
        target=target,
        flash_bytes=size["text"] + size["rodata"] + size["data"],
        ram_bytes=size["data"] + size["bss"] + (stack or 0),
        stack_bytes=stack,
    )


def _compile(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ConfigError(f"{command[0]}: cannot be run ({exc})") from exc
    if done.returncode:
        raise ConfigError(f"{shlex.join(command)}: exited with code {done.returncode}: {_last(done.stderr)}")


def _last(text: str, lines: int = 5) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
