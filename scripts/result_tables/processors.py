"""Tables of other processors: 64-bit Arm by emulation, microcontrollers, and projects for their boards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["arm_markdown", "mcu_markdown", "projects_markdown"]


def arm_markdown(found: Mapping[str, Any]) -> str:
    """A row for each group of students."""
    lines = ["| students | answers | not equal in every bit | largest difference |", "| :--- | ---: | ---: | ---: |"]
    for group, row in sorted(found["features"].items()):
        cells = [
            group.replace("int8", "8 bits"),
            f"{row['samples']}",
            f"{row['differ']}",
            f"{row['largest']:.1e}" if row["largest"] else "0",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mcu_markdown(found: Mapping[str, Any]) -> str:
    """A row for each student in 8 bits and processor: in plain C, and with the kernels of CMSIS-NN."""
    sizes = "flash, bytes | RAM, bytes | instructions, million"
    lines = [f"| student | processor | {sizes} | {sizes.replace(',', ' with CMSIS-NN,')} |"]
    lines.append(f"| :--- | :--- |{' ---: |' * 6}")
    rows = {(row["student"], row["processor"]): row for row in found["rows"]}
    for student, processor in rows:
        name, _, kind = student.partition(", ")
        if kind == "int8":
            kernels = (rows.get((key, processor)) for key in (student, f"{student}, CMSIS-NN"))
            cells = [cell for row in kernels for cell in _program(row)]
            lines.append(f"| {name} | {processor} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _program(row: Mapping[str, Any] | None) -> list[str]:
    """Flash, RAM and instructions of a program; dashes if it was not measured."""
    if row is None:
        return ["–"] * 3
    return [f"{row['flash_bytes']:,}", f"{row['ram_bytes']:,}", f"{row['instructions'] / 1e6:.1f}"]


def projects_markdown(found: Mapping[str, Any]) -> str:
    """A row for each project."""
    lines = ["| project | built with | flash, bytes | RAM, bytes |", "| :--- | :--- | ---: | ---: |"]
    for row in found["projects"]:
        sizes = [f"{row[key]:,}" if key in row else "–" for key in ("flash_bytes", "ram_bytes")]
        lines.append(f"| `{row['project']}` | {row['sdk']} | {' | '.join(sizes)} |")
    return "\n".join(lines)
