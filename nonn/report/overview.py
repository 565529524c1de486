"""The tables that every report begins with: accuracy against failed devices, live measurements, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from nonn.reliability.table import FailureRow
from nonn.report.document import Report
from nonn.report.table import Column, IntervalColumn, Table, TextColumn, points_of, share_of, show_interval

__all__ = [
    "device_table",
    "failure_table",
    "failures_table",
    "live_table",
]


def failure_table(report: Report) -> Table:
    """Accuracy against failed devices, over all subsets."""
    nodes = [device.node for device in report.devices]
    return failures_table(report.accuracy_by_failures, nodes, report.data.samples)


def failures_table(by_failures: Sequence[FailureRow], devices: Iterable[int], samples: int) -> Table:
    """Accuracy against failed devices, over all subsets.

    Args:
        by_failures: for 0 to N − 1 failed devices.
        devices: all devices, shown where none has failed.
        samples: size of the test set.
    """
    share, found = share_of(samples), " found" if any(row.sampled for row in by_failures) else ""
    columns = (
        Column("failed", "failed"),
        Column("subsets", "subsets", _many, minor=True),
        *([Column("evaluated", "sampled", missing="all", minor=True)] if found else []),
        Column("mean", "mean", share),
        *_interval("95 %", "interval", share, by_failures),
        Column(f"worst{found}", "worst", share),
        *_interval("95 %", "worst_interval", share, by_failures),
        Column(f"best{found}", "best", share, minor=True),
        *_interval("95 %", "best_interval", share, by_failures),
        TextColumn(f"answering in the worst case{found}", "worst_subset", _devices),
    )
    # Without failures every device answers; report.json leaves that list empty.
    everyone = tuple(devices)
    rows = [row if row.failed else replace(row, worst_subset=everyone) for row in by_failures]
    return Table(columns, rows)


def _many(value: int) -> str:
    """A number of subsets, which may have dozens of digits."""
    return f"{value:,}" if value < 1e9 else f"{value:.2g}"


def _interval(title: str, key: str, show: Callable[[float], str], rows: Sequence[object]) -> tuple[Column, ...]:
    """A column of intervals, where the rows have them: older reports do not."""
    has = any(getattr(row, key) is not None for row in rows)
    return (IntervalColumn(title, key, show_interval(show)),) if has else ()


def live_table(report: Report) -> Table:
    """Measurements of a live cluster next to the bundle's predictions."""
    share, rows = share_of(report.data.samples), report.measured_live
    columns = (
        Column("failed", "failed"),
        Column("requests", "requests"),
        Column("lost", "lost"),
        Column("accuracy", "accuracy", share),
        *_interval("95 %", "interval", share, rows),
        Column("predicted", "predicted", share),
        *_interval("95 %", "predicted_interval", share, rows),
        TextColumn("answered devices", "answered", _devices),
    )
    return Table(columns, rows)


def device_table(report: Report) -> Table:
    """What each device runs, sends and contributes."""
    share, point, rows = share_of(report.data.samples), points_of(report.data.samples), report.devices
    equal = sum(device.shapley for device in rows) / len(rows)

    def unequal(shapley: float) -> str:
        return point(shapley - equal)

    known = any(device.joules is not None for device in rows)
    energy = (Column("energy, mJ", "joules", lambda value: f"{1e3 * value:.3g}"),) if known else ()
    columns = (
        Column("device", "node"),
        Column("part", "part", minor=True),
        Column("filters", "filters", minor=True),
        Column("params", "params", minor=True),
        Column("MACs", "macs", minor=True),
        Column("model, bytes", "model_bytes", minor=True),
        Column("receives, bytes", "input_bytes", minor=True),
        Column("sends, bytes", "feature_bytes", minor=True),
        *energy,
        Column("accuracy alone", "accuracy_alone", share),
        *_interval("95 %", "accuracy_alone_interval", share, rows),
        Column("value, points", "value", point, least=1 / report.data.samples),
        *_interval("95 %", "value_interval", point, rows),
        Column(f"Shapley less {point(equal)}, points", "shapley", unequal),
        *_interval("95 %", "shapley_interval", unequal, rows),
    )
    return Table(columns, rows)


def _devices(value: Sequence[int]) -> str:
    return " ".join(map(str, value)) or "–"
