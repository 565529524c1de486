"""Compiles a student's C: a shared object for nodes, and an object optimised for size to measure flash and RAM.

Flash and RAM are measured with ``-Os``: flash is code, constants and initial values; RAM is static data, including the
activations, and the two largest stack frames, since calls are two deep. They are for the compiler's target, which the
result names: a cross-compiler gives those of its device. Flash includes what the student takes from a static libm and
libgcc, RAM the caller's two buffers of floats. The rest of a program (start, drivers, C library) is not included.
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
_SMALL = ("-std=c11", "-Os", "-fno-pie", "-ffunction-sections", "-fdata-sections", "-fstack-usage", "-c")
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Footprint:
    """Memory of a student on a device without an operating system.

    Attributes:
        target: the compiler's name for its target.
        flash_bytes: code, constants and initial values.
        ram_bytes: static data, the caller's buffers and stack.
        stack_bytes: the stack's share of ``ram_bytes``; None if the compiler does not report it, and then not included.
        buffer_bytes: the share of the caller's buffers: a sample and its features, as floats.
        library_bytes: the share of libm and libgcc in ``flash_bytes``; None if the target has no static ones, and then
            not included.
    """

    target: str
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int | None
    buffer_bytes: int
    library_bytes: int | None


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


def measure_footprint(compiler: Sequence[str], target: str, source: Path, buffer_bytes: int) -> Footprint:
    """Compiles for size and adds up the sections.

    Args:
        compiler: command of the C compiler.
        target: of the compiler.
        source: student.c.
        buffer_bytes: of a sample and its features.

    Raises:
        ConfigError: the compiler failed, or the command ``size`` cannot read its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        made, linked = Path(folder) / "student.o", Path(folder) / "linked.o"
        _compile([*compiler, *_SMALL, "-o", str(made), str(source)])
        usage = made.with_suffix(".su")
        frames = usage.read_text().splitlines() if usage.exists() else []
        flash, ram = _sizes(made)
        try:
            # A relocatable file takes from the libraries exactly the members that the student needs.
            _compile([*compiler, "-nostdlib", "-static", "-r", "-o", str(linked), str(made), "-lm", "-lgcc"])
            library = _sizes(linked)[0] - flash
        except ConfigError:
            library = None
    stack = sum(sorted(int(frame.split("\t")[1]) for frame in frames)[-2:]) if frames else None
    return Footprint(
        target=target,
        flash_bytes=flash + (library or 0),
        ram_bytes=ram + buffer_bytes + (stack or 0),
        stack_bytes=stack,
        buffer_bytes=buffer_bytes,
        library_bytes=library,
    )


def _sizes(made: Path) -> tuple[int, int]:
    """Bytes of flash and of static RAM of an object file."""
    try:
        command = ["size", "-A", "-d", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ConfigError(f"the sizes cannot be read: 'size' fails ({exc}); apt install binutils") from exc
    sections = [line.split() for line in done.stdout.splitlines() if line.startswith(".")]
    size = dict.fromkeys(("text", "rodata", "data", "bss"), 0)
    for name, length, *_ in sections:
        # -fdata-sections: .rodata.weight1, .bss.arena and so on.
        kind = name.split(".")[1]
        size[kind] = size.get(kind, 0) + int(length)
    return size["text"] + size["rodata"] + size["data"], size["data"] + size["bss"]


def _compile(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ConfigError(f"{command[0]}: cannot be run ({exc})") from exc
    if done.returncode:
        raise ConfigError(f"{shlex.join(command)}: exited with code {done.returncode}: {_last(done.stderr)}")


def _last(text: str, lines: int = 5) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
