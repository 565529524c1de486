"""Static memory for the temporary tensors of generated C, shared by tensors that are never live at the same time.

emx-onnx-cgen makes each temporary tensor a separate array on the stack of the entry function. This module parses that
function, places its arrays in static arenas and writes it again; it does not touch the rest of the code. Maps that are
concatenated are placed next to each other, where they are made, so that nothing is copied: a densely connected network
would copy most of its maps many times. A ReLU that is the last reader of its input writes in its place.

An entry function is a signature, then declarations and calls, one per line. Any other line is an error, so that the
output of an unknown version of the generator never becomes code that is wrong or needs more memory.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from nonn.export.places import places

__all__ = ["Buffer", "EntryFunction", "Plan", "UnexpectedCodeError", "parse_entry", "plan", "share_buffers"]

_ALIGN = 16  # bytes: the size of a vector register
_BYTES = {"float": 4, "double": 8, "_Bool": 1} | {f"{u}int{n}_t": n // 8 for u in ("", "u") for n in (8, 16, 32, 64)}
_DECLARATION = re.compile(r"(\w+) (\w+)((?:\[\d+\])+);")
_CALL = re.compile(r"\w+\([^;{}]*\);")
_CONCAT = re.compile(r"node\d+_concat\((.*)\);")
_RELU = re.compile(r"node\d+_relu\((\w+), (\w+)\);")


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
        calls: the statements that remain, in order: concatenations of neighbours are none.
    """

    offsets: dict[str, int]
    sizes: dict[str, int]
    calls: tuple[str, ...]

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
    body = [_pointer(buffer, placed.offsets[buffer.name]) for buffer in function.buffers] + list(placed.calls)
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

    Largest first, each at the lowest offset that is free during its lifetime; the parts of a concatenation and its
    result are placed as one. One arena per type, so that no memory is ever accessed as two types (C11 6.5p7).

    Args:
        buffers: to place.
        calls: statements in order of execution.
    """
    words = [set(re.findall(r"\w+", call)) for call in calls]
    blocks, kept = _blocks(buffers, calls, words)
    lives: list[tuple[int, int]] = []
    for block in blocks:
        used = [number for number, found in enumerate(words) if not found.isdisjoint(block.offsets)]
        lives.append((used[0], used[-1]) if used else (0, 0))
    starts: dict[int, int] = {}
    sizes: dict[str, int] = {}
    for kind in dict.fromkeys(block.type for block in blocks):
        numbers = [number for number, block in enumerate(blocks) if block.type == kind]
        kind_sizes = [blocks[number].size for number in numbers]
        found = places(kind_sizes, [lives[number] for number in numbers], max(1, _ALIGN // _BYTES[kind]))
        starts |= dict(zip(numbers, found, strict=True))
        sizes[kind] = max(start + size for start, size in zip(found, kind_sizes, strict=True))
    offsets = {name: starts[i] + offset for i, block in enumerate(blocks) for name, offset in block.offsets.items()}
    return Plan(offsets, sizes, tuple(kept))


@dataclass
class _Block:
    """Buffers that are placed as one.

    Attributes:
        type: C type of a value.
        offsets: index of each buffer's first value in the block.
        parts: the ranges that are written, each by one call; a concatenation writes none.
    """

    type: str
    offsets: dict[str, int]
    parts: list[tuple[int, int]]

    @property
    def size(self) -> int:
        return max(end for _, end in self.parts)

    def moved(self, by: int) -> _Block:
        shifted = {name: offset + by for name, offset in self.offsets.items()}
        return _Block(self.type, shifted, [(start + by, end + by) for start, end in self.parts])


def _blocks(
    buffers: Sequence[Buffer], calls: Sequence[str], words: Sequence[set[str]]
) -> tuple[list[_Block], list[str]]:
    """The buffers, with those that a concatenation or a ReLU joins as one block, and the calls that remain."""
    known = {buffer.name: buffer for buffer in buffers}
    block_of = {name: _Block(buffer.type, {name: 0}, [(0, buffer.size)]) for name, buffer in known.items()}
    kept = []
    for number, call in enumerate(calls):
        if (relu := _RELU.fullmatch(call)) and relu[1] in known and relu[2] in known:
            source, target, block = known[relu[1]], known[relu[2]], block_of[relu[1]]
            unread = all(block.offsets.keys().isdisjoint(found) for found in words[number + 1 :])
            if unread and (source.type, source.size) == (target.type, target.size):
                block.offsets[target.name] = block.offsets[source.name]
                block_of[target.name] = block
        match = _CONCAT.fullmatch(call)
        *parts, result = [name.strip() for name in match[1].split(",")] if match else [""]
        joined = _joined([known[name] for name in parts if name in known], known.get(result), block_of)
        if joined is None or not all(name in known for name in parts):
            kept.append(call)
        else:
            block_of |= dict.fromkeys(joined.offsets, joined)
    return list({id(block): block for block in block_of.values()}.values()), kept


def _joined(parts: Sequence[Buffer], result: Buffer | None, block_of: Mapping[str, _Block]) -> _Block | None:
    """One block in which parts lie one after another, as their concatenation; None if they cannot."""
    if not parts or result is None or result.dims[0] != 1 or sum(part.size for part in parts) != result.size:
        return None
    if any((*part.dims[:1], *part.dims[2:]) != (1, *result.dims[2:]) for part in parts):
        return None  # not along the channels of one sample
    whole = block_of[parts[0].name]
    start = end = whole.offsets[parts[0].name]
    for part in parts:
        block = block_of[part.name]
        if block is not whole and part.name not in whole.offsets:
            block = block.moved(end - block.offsets[part.name])
            whole = _Block(whole.type, whole.offsets | block.offsets, whole.parts + block.parts)
        if whole.offsets[part.name] != end:
            return None  # it is next to another buffer already
        end += part.size
    written = sorted(whole.parts)
    if written[0][0] < 0 or any(one[1] > other[0] for one, other in itertools.pairwise(written)):
        return None  # two values in one place
    return _Block(whole.type, whole.offsets | {result.name: start}, whole.parts)


def _pointer(buffer: Buffer, offset: int) -> str:
    """Declares the replacement of an array: a pointer into an arena, with the same use."""
    place = f"(nonn_arena_{buffer.type} + {offset})"
    inner = "".join(f"[{size}]" for size in buffer.dims[1:])
    if not inner:
        return f"{buffer.type} *const {buffer.name} = {place};"
    return f"{buffer.type} (*const {buffer.name}){inner} = ({buffer.type} (*){inner}){place};"
