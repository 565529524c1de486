"""The machines of a placement, read from a TOML file, and the placement as rows.

::

    [[device]]
    name = "pi-4"
    p_fail = 0.05
    macs_per_s = 2e9
    memory_bytes = 2_000_000
    link_latency_s = 0.004
    link_bytes_per_s = 1e6
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.reliability.placement import Machine, place, price_of_one_more, works_of
from nonn.reliability.table import SubsetTable
from nonn.toml import from_mapping, parse_toml

__all__ = ["load_devices", "placement_summary"]


def load_devices(path: Path) -> list[Machine]:
    """Reads the machines.

    Raises:
        ConfigError: the file is missing or not TOML, has no device, or a value is invalid.
    """
    tree = parse_toml(path)
    rows = tree.pop("device", None)
    if tree or not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: must contain only [[device]] tables" + (f", not {list(tree)}" if tree else ""))
    return [from_mapping(Machine, row, source=str(path), prefix=f"device[{i}].") for i, row in enumerate(rows)]


def placement_summary(
    bundle: Bundle, table: SubsetTable, devices: Sequence[Machine], latency_limit_s: float
) -> dict[str, Any]:
    """The best placement, and the gain from one more machine like the best of these for each student.

    Raises:
        ConfigError: no student fits any machine.
    """
    works = works_of(bundle.manifest.students, (bundle.input_of(i).num_bytes for i in range(bundle.num_devices)))
    found = place(table, works, devices, latency_limit_s=latency_limit_s)
    down = np.ones(table.num_devices)
    rows = []
    for device, student in zip(devices, found.students, strict=True):
        if student is not None:
            down[student] *= device.p_fail
        work = None if student is None else works[student]
        rows.append(
            {
                "device": device.name,
                "p_fail": device.p_fail,
                "student": student,
                "latency_ms": work and 1000 * work.latency_s(device),
                "joules": work and work.joules(device),
            }
        )
    spare = min(devices, key=lambda device: device.p_fail)
    more = price_of_one_more(table, 1 - down, spare, works, latency_limit_s)
    return {
        "exact": found.exact,
        "expected": found.expected,
        "latency_ms": 1000 * found.latency_s,
        "devices": rows,
        "one_more": {
            "like": spare.name,
            "students": [{"student": r.student, "expected": r.expected, "gain": r.gain} for r in more],
        },
    }
