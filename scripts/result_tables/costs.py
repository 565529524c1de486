"""Tables of what students cost: in each runtime, and on boards; and of what 8 bits cost in accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["costs_markdown", "energies_markdown", "estimates_markdown", "int8_markdown"]


def costs_markdown(found: Mapping[str, Any]) -> str:
    """A row for each student and runtime."""
    titles = ["file, kB", "flash, kB", "RAM, kB", "activations, kB", "MACs, million", "process, MB", "answer, ms"]
    lines = [f"| example | student | runtime | {' | '.join(titles)} |"]
    lines.append(f"| :--- | :--- | :--- |{' ---: |' * len(titles)}")
    for row in found["rows"]:
        weights = "8 bits" if row["weights"] == "int8" else "float"
        runtime = f"{'C' if row['runtime'] == 'c' else 'ONNX Runtime'}, {weights}"
        sizes = (row.get(key) for key in ("file_bytes", "flash_bytes", "ram_bytes", "activation_bytes"))
        cells = ["–" if size is None else f"{size / 1e3:,.0f}" for size in sizes]
        cells += [f"{row['macs'] / 1e6:,.3g}", f"{row['rss_mb']:.0f}", f"{row['answer_ms']:.3g}"]
        lines.append(f"| {row['example']} | `{row['model']}` | {runtime} | {' | '.join(cells)} |")
    return "\n".join(lines)


def estimates_markdown(found: Mapping[str, Any]) -> str:
    """A row for each board, and a column for each student that something is known of."""
    shown = _estimated(found)
    examples = list(dict.fromkeys(row["example"] for row in found["rows"]))
    lines = [f"| board | {' | '.join(examples)} | from |", f"| :--- |{' ---: |' * len(examples)} :--- |"]
    for board, source in found["boards"].items():
        cells = _two_digits(shown[board], examples)
        lines.append(f"| {board} | {' | '.join(cells)} | {source} |")
    return "\n".join(lines)


def energies_markdown(found: Mapping[str, Any]) -> str:
    """A row for each board whose power is known: the estimated time multiplied by it."""
    shown = _estimated(found)
    examples = list(dict.fromkeys(row["example"] for row in found["rows"]))
    lines = [f"| board | {' | '.join(examples)} | power above rest, W | from |"]
    lines.append(f"| :--- |{' ---: |' * len(examples)} ---: | :--- |")
    for board, power in found["watts"].items():
        cells = _two_digits(shown[board], examples, power["watts"])
        lines.append(f"| {board} | {' | '.join(cells)} | {power['watts']:.2g} | {power['source']} |")
    return "\n".join(lines)


def _estimated(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds by board and example; of two rows of one student on one board, the later is the one in 8 bits."""
    shown: dict[str, dict[str, float]] = {board: {} for board in found["boards"]}
    for row in found["rows"]:
        for board, ms in row["estimates_ms"].items():
            shown[board][row["example"]] = ms
    return shown


def _two_digits(values: Mapping[str, float], keys: Sequence[str], factor: float = 1.0) -> list[str]:
    return [f"{float(f'{factor * values[key]:.2g}'):g}" if key in values else "–" for key in keys]


def int8_markdown(found: Mapping[str, Any]) -> str:
    """A row for each number of failed devices: the same students in float and in 8 bits."""
    lines = ["| failed | float | int8, features too | lost with new samples, points (95 %) |"]
    lines.append("| ---: | ---: | ---: | ---: |")
    for row in found["accuracy_by_failures"]:
        means = [f"{100 * row[key]:.2f} %" for key in ("float32", "int8")]
        low, high = (f"{round(100 * end, 2) + 0:.2f}".replace("-", "−") for end in row["drop_interval"])
        lines.append(f"| {row['failed']} | {' | '.join(means)} | {low} to {high} |")
    return "\n".join(lines)
