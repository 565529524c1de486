"""Streamed answers of nodes that sense, compared with what worked, the offline fusion, and the bundle's table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.reliability.intervals import share_interval
from nonn.sensing.alignment import RESTS
from nonn.streams import WindowAnswer

__all__ = ["compared"]

ALPHA = 0.01  # in at most one of a hundred runs any set that agrees is called different


def compared(
    bundle: Bundle,
    labels: NDArray[np.int64],
    order: NDArray[np.int64],
    works: NDArray[np.bool_],
    answers: Mapping[int, WindowAnswer],
) -> dict[str, Any]:
    """Streamed accuracy of every set of units next to the table's, and every mask next to what worked.

    Args:
        bundle: with recorded test features.
        labels: of the test split.
        order: number in the test split of each window [n].
        works: which units had data in each window [n, N].
        answers: to each window, by its number.
    """
    by_mask, wrong, missing, same, absent = defaultdict[int, list[bool]](list), 0, list[int](), 0, 0
    features, _ = bundle.features
    # The last window may lack the sample after it, and a kill takes effect somewhere inside of one.
    for k in range(1, len(order) - 1):
        answer = answers.get(k)
        mask, reasons = (answer.mask, answer.missing) if answer else (0, {})
        senses = [bool(works[k, u]) and reasons.get(f"unit-{u}") != RESTS for u in range(works.shape[1])]
        if mask == 0 and any(senses):
            missing.append(k)
        wrong += any(mask >> u & 1 and not worked for u, worked in enumerate(works[k]))
        absent += sum(sensing and not mask >> u & 1 for u, sensing in enumerate(senses))
        if answer is not None and mask:
            by_mask[mask].append(bool(answer.label == bundle.manifest.classes[labels[order[k]]]))
            offline = bundle.head.logits({i: features[i][order[k]][None] for i in answer.devices})
            same += answer.class_number == int(offline.argmax())
    rows = list[dict[str, Any]]()
    for mask, correct in sorted(by_mask.items(), key=lambda item: (-item[0].bit_count(), item[0])):
        units, right, windows = [u for u in range(works.shape[1]) if mask >> u & 1], sum(correct), len(correct)
        expected, samples = int(bundle.table.correct[mask]), bundle.table.samples
        agrees = _chance(right, windows, expected, samples) >= ALPHA / len(by_mask)
        shares = {"streamed": right / windows, "table": expected / samples}
        rows.append({"units": units, "windows": windows, **shares, "agrees": agrees})
    number, samples = sum(row["windows"] for row in rows), bundle.table.samples
    accuracy = sum(row["streamed"] * row["windows"] for row in rows) / max(1, number)
    table = sum(row["table"] * row["windows"] for row in rows) / max(1, number)
    good = [answer for k, answer in answers.items() if answer.mask and 1 <= k < len(order) - 1]
    delays = 1e3 * np.array([answer.delay_s for answer in good] or [np.nan])
    sent, raw = (np.array([getattr(answer, name) for answer in good] or [np.nan]) for name in ("bytes", "raw_bytes"))
    return {
        "windows": len(order) - 2,
        "answers_missing": len(missing),
        "windows_without_answer": missing,
        "masks_with_a_unit_that_did_not_sense": wrong,
        "unit_windows_lost": absent,
        "equal_to_offline": same / max(1, number),
        "accuracy": accuracy,
        "accuracy_interval": share_interval(min(1.0, accuracy), min(number, samples)) if number else None,
        "table": table,
        "table_interval": share_interval(min(1.0, table), samples) if number else None,
        "units_mean": sum(len(row["units"]) * row["windows"] for row in rows) / max(1, number),
        "delay_p50_ms": float(np.median(delays)),
        "delay_p95_ms": float(np.quantile(delays, 0.95)),
        "bytes_per_answer": float(sent.mean()),
        "raw_bytes_per_answer": float(raw.mean()),
        "raw_over_sent": float((raw / sent).mean()),
        "rows": rows,
    }


def _chance(right: int, windows: int, expected: int, samples: int) -> float:
    """How probable two shares of one accuracy are that differ at least as much (Fisher's exact test, two-sided).

    Intervals would call a set different after a single wrong window.
    """
    total = right + expected
    first, last = max(0, total - samples), min(total, windows)
    weights = [comb(windows, k) * comb(samples, total - k) for k in range(first, last + 1)]
    return sum(weight for weight in weights if weight <= weights[right - first]) / sum(weights)
