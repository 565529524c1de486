"""The report's figures as SVG: one style, readable text, and the same bytes for the same report.

Colours are Okabe and Ito's, which stay distinct with any colour vision; lines also differ in stroke and marker.
Backgrounds are transparent and ``INK`` is the only neutral colour, so that a page can replace colours in a dark scheme.
Ids depend only on the drawing (no date, no random salt) and include the figure's name, so that one page can contain
several figures. matplotlib is imported when a figure is drawn, without pyplot and its global state.

Reference: Okabe, Ito 2008, "Color Universal Design".
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nonn.errors import MissingExtraError
from nonn.report.document import Report
from nonn.report.study_document import Study
from nonn.report.table import digits_of, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BLUE",
    "GREEN",
    "GRID",
    "INK",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "Look",
    "Stroke",
    "Weights",
    "accuracy_plot",
    "graph_plot",
    "on_white",
    "study_plot",
    "svg",
    "value_plot",
]

Look: TypeAlias = dict[str, Any]  # keywords of matplotlib
Stroke: TypeAlias = str | tuple[float, tuple[float, ...]]
Weights: TypeAlias = NDArray[np.floating]

INK = "#1d2126"
# Okabe and Ito's colours without yellow, which is too light for a line.
BLUE, GREEN, VERMILION = "#0072b2", "#009e73", "#d55e00"
ORANGE, PURPLE, SKY = "#e69f00", "#cc79a7", "#56b4e9"

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that the layout is the same on every machine
    "font.size": 11.5,
    "legend.frameon": False,
    "path.simplify": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "nonn",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
GRID: Look = {"color": INK, "alpha": 0.12, "linewidth": 0.8}

# Colour, marker and stroke of each row of a study; rows with the same colour differ in the other two.
_METHOD_LOOKS: dict[str, tuple[str, str, Stroke]] = {
    "nonn": (VERMILION, "v", (0, (1, 1))),
    "jeong-4": (ORANGE, "s", (0, (4, 2))),
    "jeong-2": (PURPLE, "D", (0, (4, 1, 1, 1))),
    "rocoin": (SKY, "^", (0, (2, 2))),
    "parity": (VERMILION, "P", (0, (3, 1))),
    "imputation": (ORANGE, "d", (0, (1, 1))),
    "synthesised": (PURPLE, "^", (0, (6, 2))),
    "best-single": (SKY, "*", (0, (5, 1))),
    "copies": (INK, "x", (0, (6, 2))),
    "units": (INK, "+", (0, (1, 2))),
    "ours-cut": (BLUE, "P", (0, (3, 1))),
    "ours": (BLUE, "o", "-"),
}
_OTHER_LOOK: tuple[str, str, Stroke] = (INK, "P", (0, (2, 2)))  # of any other method


def accuracy_plot(report: Report) -> str:
    """Accuracy against failed devices: mean, worst to best, the teacher, and live measurements.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows, live = report.accuracy_by_failures, report.measured_live
    failed, failed_live = [row.failed for row in rows], [row.failed for row in live]
    mean, worst, best = np.array([(100 * row.mean, 100 * row.worst, 100 * row.best) for row in rows]).T
    teacher, measured = 100 * report.teacher.accuracy, [100 * row.accuracy for row in live]

    def draw(axes: Axes) -> None:
        axes.fill_between(failed, worst, best, color=BLUE, alpha=0.2, linewidth=0, label="worst to best subset")
        if all(row.interval for row in rows):
            below, above = np.array([row.interval for row in rows]).T * 100
            reach = [np.maximum(mean - below, 0), np.maximum(above - mean, 0)]
            axes.errorbar(failed, mean, reach, fmt="none", color=BLUE, capsize=4, label="95 % interval of the mean")
        axes.plot(failed, mean, "o-", color=BLUE, linewidth=2.2, markersize=6, label="mean of all subsets")
        axes.axhline(teacher, color=GREEN, linewidth=1.8, linestyle=(0, (6, 3)), label="teacher")
        if live:
            ring: Look = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 2.0}
            axes.plot(failed_live, measured, "D", color=VERMILION, label="measured live", **ring)
        ends = [100 * end for row in rows for end in row.interval or ()]
        low, high = min([*worst, teacher, *measured, *ends]), max([*best, teacher, *measured, *ends])
        pad = max(0.06 * (high - low), 0.5)
        axes.set_ylim(max(low - pad, -1.5), min(high + pad, 101.5))
        last = max(failed + failed_live)
        axes.set_xlim(-0.3, last + 0.3)
        axes.set_xticks(range(last + 1))
        axes.set_xlabel("devices failed")
        bottom = axes.get_ylim()[0]
        axes.set_ylabel("accuracy, %" if bottom <= 0 else f"accuracy, % (axis starts at {bottom:.0f} %)")
        axes.grid(axis="y", **GRID)
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=2)

    return svg("accuracy", "Accuracy against failed devices", (5.9, 4.2), draw)


def study_plot(study: Study) -> str:
    """Accuracy against failed devices of every method of a study, each with the head that it serves.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = [row for row in study.rows if row.own]

    def draw(axes: Axes) -> None:
        for row in rows:
            color, marker, stroke = _METHOD_LOOKS.get(row.method, _OTHER_LOOK)
            failed = [line.failed for line in row.accuracy_by_failures]
            mean = [100 * line.mean for line in row.accuracy_by_failures]
            sd = [100 * value for value in row.sd]
            axes.errorbar(failed, mean, sd, color=color, marker=marker, linestyle=stroke, capsize=3, label=row.title)
        axes.axhline(100 * study.teacher.accuracy, color=GREEN, linewidth=1.5, label="teacher")
        axes.set_xlabel("devices failed")
        axes.set_ylabel("accuracy, mean of all subsets, %")
        axes.grid(axis="y", **GRID)
        axes.legend(loc="lower left", fontsize=9)

    return on_white(svg("study", "Accuracy against failed devices, by method", (7.2, 4.6), draw))


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
            axes.annotate(shown, (worth + up, row), xytext=(5, 0), textcoords="offset points", va="center")
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


def on_white(figure: str) -> str:
    """A figure for a file of its own, with a background: black lines vanish on a dark page."""
    return figure.replace(">", '><rect width="100%" height="100%" fill="#ffffff"/>', 1)


def svg(name: str, label: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """Draws one figure, its size in inches, and returns its <svg> element."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as exc:
        raise MissingExtraError("matplotlib", extra="train") from exc
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size)
        draw(figure.add_subplot())
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    element = text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
