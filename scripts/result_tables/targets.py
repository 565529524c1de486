"""Tables of figures of ``make bench`` next to their targets; a dash stands for a figure that the results lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["serving_markdown", "training_markdown"]


def serving_markdown(found: Mapping[str, Any]) -> str:
    """What an answer costs against a bare fan-out, with the test for liars on."""
    return _table(
        found,
        (
            ("p50 of an answer, nonn ÷ bare fan-out", "serve_p50_ratio", ".2f", "1.25"),
            ("p99 of an answer, nonn ÷ bare fan-out", "serve_p99_ratio", ".2f", "1.5"),
            ("answers a second, 64 clients, batched ÷ unbatched", "serve_batched_speedup", ".2f", "4"),
            ("p50 of an answer, with ÷ without the test for liars", "serve_test_p50_ratio", ".2f", "1.05"),
        ),
    )


def training_markdown(found: Mapping[str, Any]) -> str:
    """What two busy processes cost training."""
    return _table(
        found,
        (
            ("an epoch next to two busy processes ÷ idle", "train_busy_slowdown", ".2f", "3"),
            ("the same with PyTorch's defaults", "train_busy_slowdown_plain", ".2f", "–"),
            ("an epoch on an idle machine, above PyTorch's defaults, %", "train_idle_cost_percent", ".1f", "5"),
        ),
    )


def _table(found: Mapping[str, Any], rows: Sequence[tuple[str, str, str, str]]) -> str:
    """A row for each title, key, format and target."""
    lines = ["| | measured | target |", "|---|---:|---:|"]
    for title, key, form, target in rows:
        lines.append(f"| {title} | {format(found[key], form) if key in found else '–'} | {target} |")
    return "\n".join(lines)
