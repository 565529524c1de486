"""The report's main figures: accuracy against failed devices, values of devices, and the filter graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nonn.report.document import Report
from nonn.report.drawing import (
    BLUE,
    GREEN,
    GRID,
    INK,
    VERMILION,
    Look,
    Name,
    break_axis,
    name_lines,
    svg,
)
from nonn.report.table import digits_of, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Weights", "accuracy_plot", "graph_plot", "value_plot"]

Weights: TypeAlias = NDArray[np.floating]


def accuracy_plot(report: Report) -> str:
    """Accuracy against failed devices: mean with its interval, worst and best subset, the teacher, measurements.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows, live = report.accuracy_by_failures, report.measured_live
    failed, failed_live = [row.failed for row in rows], [row.failed for row in live]
    mean, worst, best = np.array([(100 * row.mean, 100 * row.worst, 100 * row.best) for row in rows]).T
    teacher, measured = 100 * report.teacher.accuracy, [100 * row.accuracy for row in live]

    def draw(axes: Axes) -> None:
        known = [(row.failed, *row.interval) for row in rows if row.interval]
        if known:
            places, below, above = np.array(known).T
            band: Look = {"color": BLUE, "alpha": 0.22, "linewidth": 0, "label": "95 % interval of the mean"}
            axes.fill_between(places, 100 * below, 100 * above, **band)
        axes.axhline(teacher, color=GREEN, linewidth=1.8, linestyle=(0, (6, 3)))
        axes.plot(failed, best, "^:", color=INK, linewidth=1.2, markersize=4)
        axes.plot(failed, worst, "v:", color=VERMILION, linewidth=1.6, markersize=5)
        axes.plot(failed, mean, "o-", color=BLUE, linewidth=2.2, markersize=6)
        if live:
            ring: Look = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 2.0}
            axes.plot(failed_live, measured, "D", color=INK, label="measured live", **ring)
        ends = [100 * end for row in rows for end in row.interval or ()]
        low, high = min([*worst, teacher, *measured, *ends]), max([*best, teacher, *measured, *ends])
        pad = max(0.06 * (high - low), 0.5)
        axes.set_ylim(max(low - pad, -1.5), min(high + pad, 101.5))
        last = max(failed + failed_live)
        axes.set_xlim(-0.3, last + 0.3)
        axes.set_xticks(range(last + 1))
        axes.set_xlabel("devices failed")
        axes.set_ylabel("accuracy, %" if axes.get_ylim()[0] <= 0 else "accuracy, % (axis does not start at 0)")
        axes.grid(axis="y", **GRID)
        break_axis(axes)
        names = [Name("teacher", teacher, GREEN), Name("mean", mean[-1], BLUE)]
        if any(row.subsets > 1 for row in rows):
            names += [Name("best subset", best[-1], INK), Name("worst subset", worst[-1], VERMILION)]
        name_lines(axes, names, failed[-1])
        if known or live:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)

    return svg("accuracy", "Accuracy against failed devices", (6.6, 4.2), draw)


def value_plot(report: Report, key: Literal["value", "shapley"] = "value") -> str:
    """The value of each device as bars, in points of accuracy.

    Args:
        report: the report to show.
        key: attribute of a device. Values and Shapley values get separate figures, since their scales differ: much of
            the accuracy of redundant devices depends on no single one of them. Shapley values are shown as their
            difference from an equal share. Values smaller than one test sample are pale.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    values = [getattr(device, key) for device in report.devices]
    equal = sum(values) / len(values) if key == "shapley" else 0.0
    rows, value = range(len(values)), [100 * (worth - equal) for worth in values]
    ends = [
        getattr(device, f"{key}_interval") or (worth, worth)
        for device, worth in zip(report.devices, values, strict=True)
    ]
    reach = [[max(100 * (w - a), 0.0) for (a, _), w in zip(ends, values, strict=True)]]
    reach.append([max(100 * (b - w), 0.0) for (_, b), w in zip(ends, values, strict=True)])
    digits = digits_of(report.data.samples)
    low = min(0.0, *(v - down for v, down in zip(value, reach[0], strict=True)))
    high = max(0.0, *(v + up for v, up in zip(value, reach[1], strict=True)))
    room = 0.14 * ((high - low) or 1.0)  # for the labels at the ends of the bars

    def draw(axes: Axes) -> None:
        for row, worth in zip(rows, value, strict=True):
            seen = abs(worth) * report.data.samples >= 100 * (1 - 1e-9)  # at least one sample
            axes.barh(row, worth, height=0.68, color=BLUE, alpha=1.0 if seen else 0.35)
        axes.errorbar(value, rows, xerr=reach, fmt="none", color=INK, elinewidth=1.1, capsize=3)
        for row, worth, up in zip(rows, value, reach[1], strict=True):
            shown = points(worth / 100, digits)
            axes.annotate(shown, (max(worth + up, 0.0), row), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_yticks(rows, [f"device {device.node}" for device in report.devices])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        title = f"Shapley value less {100 * equal:.{digits}f}" if key == "shapley" else "value"
        axes.set_xlabel(f"{title}, points of accuracy")
        axes.set_xlim(low - room if low < 0 else 0.0, high + room)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.grid(axis="x", **GRID)
        axes.set_axisbelow(True)

    return svg(key, "Value of each device", (5.9, 1.0 + 0.3 * len(values)), draw)


def graph_plot(weights: Weights, parts: Sequence[Sequence[int]]) -> str:
    """The filter graph with its filters ordered by part: the stronger the colour, the heavier the edge.

    Args:
        weights: edge weights [C, C].
        parts: filters of each part; filters of no part come last.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    dropped = sorted(set(range(len(weights))).difference(*parts))
    blocks = [*parts, dropped] if dropped else list(parts)
    names = [str(j) for j in range(len(parts))] + ["none"] * bool(dropped)
    order = np.array([c for block in blocks for c in block])
    ordered = weights[np.ix_(order, order)].astype(np.float64)
    ends = np.cumsum([len(block) for block in blocks])
    starts = np.concatenate([[0], ends[:-1]])
    # A few edges are far heavier than the rest; without the percentile the others would be invisible.
    heavy = float(np.percentile(ordered[ordered > 0], 99)) if (ordered > 0).any() else 1.0

    def draw(axes: Axes) -> None:
        from matplotlib.colors import LinearSegmentedColormap, to_rgba
        from matplotlib.patches import Rectangle

        fade = LinearSegmentedColormap.from_list("fade", [to_rgba(BLUE, 0.0), to_rgba(BLUE, 1.0)])
        axes.imshow(ordered, cmap=fade, vmin=0.0, vmax=heavy, interpolation="none")
        for start, end in zip(starts, ends, strict=True):
            corner, side = (start - 0.5, start - 0.5), end - start
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=VERMILION, linewidth=1.6))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks((starts + ends - 1) / 2, names)
            axis.set_label_text("filters of part")
            axis.set_tick_params(length=0)
        for edge in axes.spines.values():
            edge.set(visible=True, alpha=0.3)

    return svg("graph", "Filter graph, filters ordered by part", (5.0, 4.8), draw)
