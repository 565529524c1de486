"""What the results of ``nonn-sim enumerate`` share: how they begin, the table of devices, the promises that hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nonn.bundle import Bundle
from nonn.reliability.guarantees import Verdict
from nonn.report.table import Column, IntervalColumn, Table, points_of, share_of, show_interval

__all__ = ["Summary", "device_table", "heading", "held"]

Summary = dict[str, Any]


def heading(bundle: Bundle, method: str, samples: int) -> Summary:
    """How a summary begins.

    Args:
        bundle: the bundle.
        method: ``exact``, ``stored`` or ``sampled``.
        samples: size of the test set.
    """
    return {
        "schema": 1,
        "experiment": bundle.manifest.experiment,
        "bundle": f"sha256:{bundle.hash}",
        "method": method,
        "samples": samples,
        "points_per_sample": 100 / samples,
    }


def device_table(devices: Sequence[Mapping[str, Any]], samples: int, marginal: str) -> Table:
    """What each device contributes.

    Args:
        devices: rows of a summary.
        samples: size of the test set.
        marginal: title of the value under the law, which rows may lack.
    """
    share, point = share_of(samples), points_of(samples)
    shown = [("accuracy alone", "accuracy_alone", share), ("Shapley, points", "shapley", point)]
    if "marginal" in devices[0]:
        shown.append((marginal, "marginal", point))
    columns = [Column("device", "device"), Column("part", "part")]
    for title, key, show in shown:
        columns += [Column(title, key, show), IntervalColumn("95 %", f"{key}_interval", show_interval(show))]
    return Table(tuple(columns), devices)


def held(summary: Mapping[str, Any]) -> str:
    """A line for each promise that holds; a broken one ends the command with an error."""
    verdicts = [Verdict(**verdict) for verdict in summary.get("guarantees", ())]
    return "\n".join(f"guarantee {verdict}" for verdict in verdicts if verdict.holds)
