"""The style of all figures, as SVG: readable text, and the same bytes for the same numbers.

Colours are Okabe and Ito's, which stay distinct with any colour vision; lines also differ in stroke and marker, and
have their names at their ends (``name_lines``). Backgrounds are transparent and ``INK`` is the only neutral colour, so
that a page can replace colours in a dark scheme; a figure for a file has a white background (``on_white``). Ids depend
only on the drawing (no date, no random salt) and include the figure's name, so that a page can contain several figures.
matplotlib is imported when a figure is drawn, without pyplot and its global state.

Reference: Okabe, Ito 2008, "Color Universal Design".
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from nonn.errors import MissingExtraError

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
    "Name",
    "Stroke",
    "break_axis",
    "floor_without_outliers",
    "name_lines",
    "on_white",
    "spread",
    "svg",
]

Look: TypeAlias = dict[str, Any]  # keywords of matplotlib
Stroke: TypeAlias = str | tuple[float, tuple[float, ...]]

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

_NAME_SIZE = 10.5  # of the names of lines, points


@dataclass(frozen=True)
class Name:
    """The name of a line, written at its right end.

    Attributes:
        text: the name.
        y: where the line ends, in the units of the axis; below the axis for a line that leaves it.
        colour: of the line.
    """

    text: str
    y: float
    colour: str


def name_lines(axes: Axes, names: Sequence[Name], x: float) -> None:
    """Writes the names of lines to the right of the axes, moved apart where they would overlap.

    Args:
        axes: the axes, with their final limits.
        names: one for each line.
        x: where the lines end.
    """
    from matplotlib.figure import Figure

    figure = axes.get_figure()
    low, high = axes.get_ylim()
    inches = figure.get_figheight() if isinstance(figure, Figure) else 4.0
    line = 1.3 * _NAME_SIZE / (72 * 0.76 * inches) * (high - low)  # height of a line of text; 0.76: the axes' share
    ordered = sorted(names, key=lambda name: name.y)
    rows = [1 + name.text.count("\n") for name in ordered]
    ends = [min(max(name.y, low), high) for name in ordered]
    for name, end, y in zip(ordered, ends, spread(ends, [line * row for row in rows], low, high), strict=True):
        # From the left edge of the text: from its middle it would cross the names next to it.
        look: Look = {"arrowstyle": "-", "relpos": (0.0, 0.5), "color": name.colour, "linewidth": 1.4}
        look |= {"shrinkA": 1, "shrinkB": 4}
        axes.annotate(
            name.text.replace("$", r"\$"),  # a dollar sign would start a formula
            (x, end),
            xytext=(1.045, y),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=_NAME_SIZE,
            arrowprops=look,
            annotation_clip=False,
        )


def spread(places: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Moves centres of boxes apart, so that none overlaps another; at the top they are pushed down again.

    Args:
        places: where the boxes would be, ascending [n].
        heights: of the boxes [n].
        low: end of the axis at the bottom.
        high: end of the axis at the top.
    """
    found: list[float] = []
    for number, (place, height) in enumerate(zip(places, heights, strict=True)):
        least = found[-1] + (heights[number - 1] + height) / 2 if number else low
        found.append(max(place, least))
    above = high
    for number in reversed(range(len(found))):
        found[number] = min(found[number], above)
        above = found[number] - (heights[number] + (heights[number - 1] if number else 0.0)) / 2
    return found


def break_axis(axes: Axes) -> None:
    """Marks a vertical axis that does not start at 0 with two strokes across its foot."""
    if axes.get_ylim()[0] <= 0:
        return
    for number, height in enumerate((0.02, 0.045)):
        (stroke,) = axes.plot(
            (-0.012, 0.012), (height - 0.012, height + 0.012), color=INK, linewidth=1.2, transform=axes.transAxes
        )
        stroke.set(clip_on=False, gid=f"axis-break-{number}")


def floor_without_outliers(lows: Sequence[float], high: float) -> float:
    """The lowest value that an axis needs to show; outliers that would take half of its length are left out.

    Args:
        lows: the lowest value of each line; at most a third of them are outliers.
        high: the highest value of all lines.
    """
    ordered = sorted(lows)
    most = len(ordered) // 3
    for number in range(most, 0, -1):
        if high - ordered[number] <= (high - ordered[number - 1]) / 2:
            return ordered[number]
    return ordered[0]


def on_white(figure: str) -> str:
    """A figure as a separate file, with a background: black lines vanish on a dark page."""
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
