"""Static memory for the temporary tensors of generated C, shared by tensors that are never live at the same time.

emx-onnx-cgen makes each temporary tensor a separate array on the stack of the entry function. This module parses that
function, places its arrays in static arenas and writes it again; it does not touch the rest of the code. An entry
function is a signature, then declarations and calls, one per line. Any other line is an error, so that the output of an
unknown version of the generator never becomes code that is wrong or needs more memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

__all__ = ["Buffer", "EntryFunction", "Plan", "UnexpectedCodeError", "parse_entry", "plan", "share_buffers"]

_ALIGN = 16  # bytes: the size of a vector register
_BYTES = {"float": 4, "double": 8, "_Bool": 1} | {f"{u}int{n}_t": n // 8 for u in ("", "u") for n in (8, 16, 32, 64)}
_DECLARATION = re.compile(r"(\w+) (\w+)((?:\[\d+\])+);")
_CALL = re.compile(r"\w+\([^;{}]*\);")


class UnexpectedCodeError(Exception):
    """The generated code does not have the expected shape."""


@dataclass(frozen=True)
class Buffer:
    """A temporary tensor.

    Attributes:
        type: C type of a value.
        name: of the variable.
        dims: sizes of its dimensions.
    """

    type: str
    name: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.dims)


@dataclass(frozen=True)
class EntryFunction:
    """The function that runs the network.

    Attributes:
        before: the code that precedes it.
        signature: its first line.
        buffers: its temporary tensors.
        calls: its statements, in order.
        after: the code that follows it.
    """

    before: str
    signature: str
    buffers: tuple[Buffer, ...]
    calls: tuple[str, ...]
    after: str


@dataclass(frozen=True)
class Plan:
    """Placement of buffers in arenas.

    Attributes:
        offsets: index of each buffer's first value in the arena of its type.
        sizes: values of each type's arena.
    """

    offsets: dict[str, int]
    sizes: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """Bytes of all arenas."""
        return sum(size * _BYTES[kind] for kind, size in self.sizes.items())


def share_buffers(code: str, entry: str) -> tuple[str, int]:
    """Moves the temporary tensors of a function from its stack to shared static arenas.

    Args:
        code: a C file from emx-onnx-cgen.
        entry: name of its entry function.

    Returns:
        The code and the bytes of all arenas.

    Raises:
        UnexpectedCodeError: this version of nonn cannot parse the entry function.
    """
    function = parse_entry(code, entry)
    placed = plan(function.buffers, function.calls)
    arenas = [f"static {kind} nonn_arena_{kind}[{size}];" for kind, size in sorted(placed.sizes.items())]
    body = [_pointer(buffer, placed.offsets[buffer.name]) for buffer in function.buffers] + list(function.calls)
    lines = [*arenas, "", function.signature, *(f"    {line}" for line in body), "}"]
    return function.before + "\n".join(lines) + function.after, placed.num_bytes


def parse_entry(code: str, entry: str) -> EntryFunction:
    """Reads an entry function.

    Raises:
        UnexpectedCodeError: there is no such function, there are several, or one of its lines is neither a
            declaration of a fixed array nor a call.
    """
    before, start, rest = code.rpartition(f"\nvoid {entry}(")
    if not start or f"\nvoid {entry}(" in before:
        raise UnexpectedCodeError(f"{'several functions' if start else 'no function'} void {entry}()")
    inside, end, after = rest.partition("\n}")
    if not end:
        raise UnexpectedCodeError(f"{entry}() does not end")
    signature, *lines = inside.split("\n")
    if not signature.endswith(") {"):
        raise UnexpectedCodeError(f"the signature of {entry}() is not one line: '{signature}'")
    buffers: list[Buffer] = []
    calls: list[str] = []
    for line in map(str.strip, lines):
        declared = _DECLARATION.fullmatch(line)
        if declared and declared[1] in _BYTES and not calls:
            buffers.append(Buffer(declared[1], declared[2], tuple(map(int, declared[3][1:-1].split("][")))))
        elif _CALL.fullmatch(line):
            calls.append(line)
        else:
            raise UnexpectedCodeError(f"'{line}' in {entry}() is neither a fixed array nor a call after them")
    return EntryFunction(before + "\n", f"void {entry}({signature}", tuple(buffers), tuple(calls), after)


def plan(buffers: Sequence[Buffer], calls: Sequence[str]) -> Plan:
    """Places buffers so that two share memory only if one is last used before the other is first used.

    Largest first, each at the lowest offset that is free during its lifetime. One arena per type, so that no memory is
    ever accessed as two types (C11 6.5p7).

    Args:
        buffers: to place.
        calls: statements in order of execution.
    """
    words = [set(re.findall(r"\w+", call)) for call in calls]
    lives: dict[str, tuple[int, int]] = {}
    for buffer in buffers:
        used = [number for number, found in enumerate(words) if buffer.name in found]
        lives[buffer.name] = (used[0], used[-1]) if used else (0, 0)
    placed: list[Buffer] = []
    offsets: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for buffer in sorted(buffers, key=lambda buffer: -buffer.size):
        start, (first, last) = 0, lives[buffer.name]
        step = max(1, _ALIGN // _BYTES[buffer.type])
        taken = sorted(
            (offsets[other.name], offsets[other.name] + other.size)
            for other in placed
            if other.type == buffer.type and lives[other.name][0] <= last and first <= lives[other.name][1]
        )
        for low, high in taken:
            if start + buffer.size <= low:
                break
            start = max(start, -(-high // step) * step)
        placed.append(buffer)
        offsets[buffer.name] = start
        sizes[buffer.type] = max(sizes.get(buffer.type, 0), start + buffer.size)
    return Plan(offsets, sizes)


def _pointer(buffer: Buffer, offset: int) -> str:
    """Declares the replacement of an array: a pointer into an arena, with the same use."""
    place = f"(nonn_arena_{buffer.type} + {offset})"
    inner = "".join(f"[{size}]" for size in buffer.dims[1:])
    if not inner:
        return f"{buffer.type} *const {buffer.name} = {place};"
    return f"{buffer.type} (*const {buffer.name}){inner} = ({buffer.type} (*){inner}){place};"
