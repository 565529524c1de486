"""Microcontrollers in QEMU: compilers and emulators, programs of ``devices/mcu`` linked with a student, and boards.

    python -m benchmarks.emulated BUNDLE/compiled/student-3 --port 4321     # a board to try gateways with

A program gets ``RAM_KB`` of RAM, and the linker refuses one that needs more. The serial line of a board is a TCP port.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nonn.export.cmsis_nn import check_cmsis_nn, sources

__all__ = [
    "HERE",
    "PROCESSORS",
    "RAM_KB",
    "STACK_BYTES",
    "Board",
    "EmulatedBoard",
    "NativeBoard",
    "Processor",
    "free_port",
    "link",
]

HERE = Path(__file__).resolve().parent.parent
RAM_KB, STACK_BYTES = 256, 4096
PACKAGES = (
    "apt-get install qemu-system-arm qemu-system-misc gcc-arm-none-eabi picolibc-arm-none-eabi gcc-riscv64-unknown-elf "
    "picolibc-riscv64-unknown-elf"
)


@dataclass(frozen=True)
class Processor:
    """A processor, its compiler and its emulated board.

    Attributes:
        name: in the result.
        compiler: command.
        emulator: command.
        flash: address of the program.
        ram: address of the RAM.
    """

    name: str
    compiler: str
    emulator: str
    flash: int
    ram: int

    @property
    def missing(self) -> list[str]:
        """Programs that are not installed."""
        programs = [command.split()[0] for command in (self.compiler, self.emulator)]
        return [program for program in programs if not shutil.which(program)]


_ARM = "arm-none-eabi-gcc -mthumb"
PROCESSORS = (
    Processor("Cortex-M3", f"{_ARM} -mcpu=cortex-m3", "qemu-system-arm -M mps2-an385", 0, 0x20000000),
    Processor(
        "Cortex-M4F",
        f"{_ARM} -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16",
        "qemu-system-arm -M mps2-an386",
        0,
        0x20000000,
    ),
    Processor(
        "RV32IMAC",
        "riscv64-unknown-elf-gcc -march=rv32imac -mabi=ilp32",
        "qemu-system-riscv32 -M virt -bios none",
        0x80000000,
        0x80400000,
    ),
)


def link(
    processor: Processor, program: str, student: Path, optimise: str = "-O2", cmsis_nn: Path | None = None
) -> Path:
    """Links a program of devices/mcu with a student.c into the same folder, and with the kernels of CMSIS-NN if given.

    Raises:
        AssertionError: it does not fit.
    """
    made = student.with_name("program.elf")
    memory = {"flash": processor.flash, "flash_size": 1 << 22, "ram": processor.ram, "ram_size": 1024 * RAM_KB}
    symbols = [f"-Wl,--defsym=__{key}={value}" for key, value in {**memory, "stack_size": STACK_BYTES}.items()]
    options = ["--specs=picolibc.specs", "--oslib=semihost", "--crt0=hosted", "-std=c11", optimise]
    options += ["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", *symbols, f"-I{student.parent}"]
    build = [*processor.compiler.split(), *options, str(HERE / "devices/mcu" / program), str(student)]
    if cmsis_nn is not None:
        rounding = str(HERE / "devices/mcu/requantize.h")
        build += [check_cmsis_nn(cmsis_nn), "-include", rounding, *map(str, sources(cmsis_nn))]
    built = subprocess.run([*build, "-lm", "-o", str(made)], capture_output=True, text=True)
    assert not built.returncode, f"{program} for {processor.name}: {built.stderr.strip()[-500:]}"
    return made


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Board(ABC):
    """A board as a child process; off until it is switched on.

    Args:
        command: runs the board.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.switch_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def switch_on(self) -> None:
        """Starts it."""
        self._child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        """Switches it off without warning; idempotent."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._child = None

    @abstractmethod
    def reset(self) -> None:
        """Resets the processor."""


class NativeBoard(Board):
    """node.c as a program of this machine, ``command``, behind a UDP port."""

    def reset(self) -> None:
        """Ends it and starts it again at once."""
        self.kill()
        self.switch_on()


class EmulatedBoard(Board):
    """A board with ``devices/mcu/node.c`` whose serial line is a TCP port.

    Args:
        processor: of the board.
        program: made by ``link``.
        port: of the line; the monitor of QEMU has a socket next to the program.
    """

    def __init__(self, processor: Processor, program: Path, port: int) -> None:
        self._monitor = program.with_suffix(".monitor")
        line, monitor = f"tcp:127.0.0.1:{port},server=on,wait=off", f"unix:{self._monitor},server=on,wait=off"
        devices = ["-display", "none", "-monitor", monitor, "-serial", line]
        super().__init__([*processor.emulator.split(), *devices, "-kernel", program])

    def reset(self) -> None:
        """Resets the processor; the line stays open."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as monitor:
            monitor.connect(str(self._monitor))
            monitor.sendall(b"system_reset\n")
            while b"system_reset" not in monitor.recv(4096):
                pass


def main() -> None:
    """Runs a student on an emulated Cortex-M4F until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Runs a student that nonn export wrote on an emulated Cortex-M4F.")
    parser.add_argument("student", type=Path, help="folder with student.c and student.h")
    parser.add_argument("--port", type=int, default=4321, help="of the serial line (default: %(default)s)")
    args = parser.parse_args()
    processor = PROCESSORS[1]
    if processor.missing:
        parser.exit(1, f"no {', '.join(processor.missing)}; {PACKAGES}\n")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(shutil.copytree(args.student, Path(folder) / "student")) / "student.c"
        program = link(processor, "node.c", source)
        ends = {signal.SIGINT, signal.SIGTERM}
        with EmulatedBoard(processor, program, args.port):
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            print(f"a board at tcp:127.0.0.1:{args.port}; Ctrl-C switches it off", flush=True)
            signal.sigwait(ends)


if __name__ == "__main__":
    main()
