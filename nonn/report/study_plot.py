"""The figure of a study: accuracy of every method against failed devices, mean and worst subset."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from nonn.report.drawing import (
    BLUE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Name,
    Stroke,
    break_axis,
    floor_without_outliers,
    name_lines,
    on_white,
    svg,
)
from nonn.report.study_document import Study, StudyRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["study_plot"]

_WIDTH = 22  # of a name, characters

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


def study_plot(study: Study) -> str:
    """Accuracy against failed devices of every method of a study, each with the head that it serves.

    The left panel has means over all subsets, with the standard deviation over runs; the right one the worst subset of
    each number of failures. A method that would halve the scale for all others leaves the axis at the bottom; its name
    then has its last accuracy.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = [row for row in study.rows if row.own]
    teacher = 100 * study.teacher.accuracy
    reached = [100 * line.worst for row in rows for line in row.accuracy_by_failures]
    high = max(teacher, *(100 * line.mean for row in rows for line in row.accuracy_by_failures))
    low = floor_without_outliers([min(100 * line.worst for line in row.accuracy_by_failures) for row in rows], high)
    pad = 0.06 * (high - min(low, *reached[:1]))

    def draw(axes: Axes) -> None:
        whole = axes.get_figure()
        assert whole is not None
        axes.remove()
        for number, title in enumerate(("mean of all subsets", "worst subset"), 1):
            panel = whole.add_subplot(1, 2, number)
            _panel(panel, rows, worst=number == 2)
            panel.axhline(teacher, color=GREEN, linewidth=1.5, linestyle=(0, (6, 3)))
            panel.set_title(title, fontsize=11.5, loc="left")
            panel.set_ylim(max(low - pad, -1.0), min(high + pad, 101.0))
            panel.set_xticks(range(max(len(row.accuracy_by_failures) for row in rows)))
            panel.set_xlabel("devices failed")
            if number == 1:
                panel.set_ylabel("accuracy, %")
            panel.grid(axis="y", **GRID)
            break_axis(panel)
            _names(panel, rows, teacher, worst=number == 2)

    height = max(4.6, 1.2 + 0.36 * len(rows))
    return on_white(svg("study", "Accuracy against failed devices, by method", (11.6, height), draw))


def _panel(axes: Axes, rows: list[StudyRow], *, worst: bool) -> None:
    """The lines of one panel."""
    for row in rows:
        color, marker, stroke = _METHOD_LOOKS.get(row.method, _OTHER_LOOK)
        failed = [line.failed for line in row.accuracy_by_failures]
        values = [100 * (line.worst if worst else line.mean) for line in row.accuracy_by_failures]
        sd = None if worst else [100 * value for value in row.sd]
        axes.errorbar(failed, values, sd, color=color, marker=marker, linestyle=stroke, capsize=3)


def _names(axes: Axes, rows: list[StudyRow], teacher: float, *, worst: bool) -> None:
    """The names of the lines of one panel."""
    bottom = axes.get_ylim()[0]
    names = [Name("teacher", teacher, GREEN)]
    for row in rows:
        line = row.accuracy_by_failures[-1]
        last = 100 * (line.worst if worst else line.mean)
        text = fill(row.title, _WIDTH) + (f", to {last:.0f} %" if last < bottom else "")
        names.append(Name(text, last, _METHOD_LOOKS.get(row.method, _OTHER_LOOK)[0]))
    name_lines(axes, names, max(row.accuracy_by_failures[-1].failed for row in rows))
