"""Minimal cut sets as a reliability block diagram, in Graphviz' DOT language.

The system works while a path of working blocks joins ``in`` and ``out``: the cuts are in series, and the devices of a
cut are in parallel. A device that is in several cuts has a block in each, which works or fails as one: its blocks share
the attribute ``device``. Any failure law will do; ``p`` of a block is the probability that its device is down.
"""

from __future__ import annotations

import numpy as np

from nonn.reliability.cuts import CutSets
from nonn.reliability.laws import Law
from nonn.reliability.subsets import membership

__all__ = ["block_diagram"]


def block_diagram(found: CutSets, law: Law) -> str:
    """The diagram as text.

    Args:
        found: the cut sets; without one, ``in`` and ``out`` are joined, and with an empty one they are not.
        law: the failure law.
    """
    down = law.probabilities() @ ~membership(law.num_devices)
    lines = [
        f'digraph "accuracy of at least {found.level:g}" {{',
        "  rankdir=LR;",
        "  node [shape=box];",
        "  in [shape=point];",
    ]
    before = "in"
    for number, cut in enumerate(found.cuts):
        after = "out" if number == len(found.cuts) - 1 else f"after_{number}"
        lines.append(f"  {after} [shape=point];")
        for device in cut.devices:
            block = f"cut_{number}_device_{device}"
            p = float(np.clip(down[device], 0, 1))
            lines.append(f'  {block} [label="device {device}", device={device}, p="{p:.6g}"];')
            lines.append(f"  {before} -> {block} -> {after};")
        before = after
    if not found.cuts:
        lines += ["  out [shape=point];", "  in -> out;"]
    return "\n".join([*lines, "}"]) + "\n"
