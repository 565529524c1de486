"""A student compiled to C: a shared object from ``nonn export --target c``, called through ctypes.

It needs only the C library, so a node without ONNX Runtime is tens of megabytes smaller. Hash and sizes of the student
in the file are checked before it is called. No hash of the bundle covers the code itself, so it needs the same trust as
the program. ``nonn-device check`` runs it in a separate process; ``nonn export`` compares it with ONNX Runtime.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import InputSpec, StudentEntry
from nonn.errors import BundleError
from nonn.rpc.wire import Array

__all__ = ["ABI", "CompiledRuntime", "library_path", "machine_of"]

ABI = 1  # of the interface in nonn/export/c.py

Float32 = NDArray[np.float32]

# ELF: bytes 4 and 5 are word size and byte order, bytes 18 and 19 the machine; numbers of gabi and its registry.
_MACHINES = {3: "x86", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "S390", 40: "32-bit Arm", 62: "x86-64"}
_MACHINES |= {183: "64-bit Arm", 243: "RISC-V", 258: "LoongArch"}


def library_path(bundle: Path, device: int) -> Path:
    """Path where ``nonn export`` writes the shared object of a student."""
    return bundle / "compiled" / f"student-{device}" / "student.so"


class CompiledRuntime:
    """A student as a shared object.

    Args:
        path: the shared object.
        student: its entry in the manifest.
        spec: its input.

    Raises:
        BundleError: it is missing, for another processor, cannot be loaded, or was compiled from another student.
    """

    def __init__(self, path: Path, student: StudentEntry, spec: InputSpec) -> None:
        again = f"make it with: nonn export BUNDLE --target c --student {student.device}"
        try:
            with path.open("rb") as file:
                head = file.read(64)
                found, size = machine_of(head), file.seek(0, 2)
        except OSError as exc:
            raise BundleError(f"{path}: no compiled student ({exc.strerror}); {again}") from exc
        if found is None:
            raise BundleError(f"{path}: not a shared object; {again}")
        with Path("/proc/self/exe").open("rb") as file:
            own = machine_of(file.read(20))
        if found != own:
            raise BundleError(
                f"{path}: compiled for {found}, but this device is {own}; {again} on a device of this kind, or with a "
                "cross-compiler: --cc"
            )
        if size < _size_of(head):
            # The loader would kill the whole process with SIGBUS.
            raise BundleError(f"{path}: truncated, {size} bytes of {_size_of(head)}; copy it again, or {again}")
        try:
            self._library = ctypes.CDLL(str(path.resolve()))
            abi, inputs, features = (self._integer(name) for name in ("abi", "inputs", "features"))
            made_from = bytes((ctypes.c_char * 64).in_dll(self._library, "nonn_student_sha256")).decode(
                "ascii", "replace"
            )
            self._batch = self._library.nonn_student_batch
        except (OSError, AttributeError, ValueError) as exc:  # not loadable, or without a symbol
            raise BundleError(f"{path}: cannot be loaded ({exc}); {again}") from exc
        if abi != ABI:
            raise BundleError(f"{path}: interface {abi}, this version of nonn has {ABI}; {again}")
        if made_from != student.sha256:
            raise BundleError(
                f"{path}: compiled from another student ({made_from[:12]}…) than the bundle's student {student.device} "
                f"({student.sha256[:12]}…); {again}"
            )
        if (inputs, features) != (int(np.prod(spec.shape)), student.width):
            raise BundleError(
                f"{path}: {inputs} inputs and {features} features, but {list(spec.shape)} and {student.width} in the "
                f"manifest; {again}"
            )
        pointer = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
        self._batch.argtypes, self._batch.restype = [pointer, pointer, ctypes.c_int32], None
        self._shape, self._width = spec.shape, student.width
        self._sha256 = made_from

    @property
    def name(self) -> str:
        """Name, and the hash of the student it was compiled from."""
        return f"compiled C {self._sha256[:12]}"

    def run(self, batch: Array) -> Float32:
        """Raw inputs [B, …], uint8 or float32 → features [B, d_i]."""
        if batch.shape[1:] != self._shape:  # C would read beyond the end
            raise BundleError(f"batch of shape {list(batch.shape)}, the student needs [B, {list(self._shape)}]")
        features = np.empty((len(batch), self._width), np.float32)
        self._batch(np.ascontiguousarray(batch, np.float32), features, len(batch))
        return features

    def _integer(self, name: str) -> int:
        return ctypes.c_int32.in_dll(self._library, f"nonn_student_{name}").value


def machine_of(head: bytes) -> str | None:
    """Processor of an ELF file, from its first 20 bytes; None if it is not an ELF file."""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    number = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    name = _MACHINES.get(number, f"processor {number}")
    bits = {1: 32, 2: 64}.get(head[4], 0)
    # Three machine numbers are used for two word sizes.
    return f"{name}, {bits} bit" if number in (8, 62, 243) else name


def _size_of(head: bytes) -> int:
    """Bytes up to the end of an ELF file's section table, the file's last part, from its header; 0 without a table."""
    offset, width, entries = (40, 8, 58) if head[4] == 2 else (32, 4, 46)
    order: Literal["big", "little"] = "big" if head[5] == 2 else "little"

    def number(start: int, count: int) -> int:
        return int.from_bytes(head[start : start + count], order)

    return number(offset, width) + number(entries, 2) * number(entries + 2, 2)
