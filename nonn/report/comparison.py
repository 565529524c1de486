"""The comparison of partitioners as a table and a figure; ``nonn.partition.compare`` defines what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nonn.report import drawing
from nonn.report.table import Column, Table, TextColumn, as_markdown, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nonn.partition.compare import PartitionComparison, PartitionRow

__all__ = ["comparison_markdown", "comparison_plot", "comparison_table"]

_COLOURS = {"co-activation": drawing.BLUE, "nonn": drawing.VERMILION}


def comparison_table(rows: Sequence[PartitionRow]) -> Table:
    """All methods on all graphs; what could not be measured is a dash."""
    measured = [row for row in rows if row.measures]
    levels = [level.missing for level in measured[0].probe] if measured else []
    columns = [
        TextColumn("method", "method", str),
        TextColumn("graph", "graph", str),
        TextColumn("sizes", "sizes", _sizes),
        *(
            Column(title, key, _three)
            for title, key in [
                ("balance", "balance"),
                ("normalised cut", "normalised_cut"),
                ("modularity", "modularity"),
                ("kept correlation", "kept_correlation"),
                ("stability", "stability"),
            ]
        ),
        Column("ms", "seconds", lambda value: f"{1000 * value:.1f}"),
    ]
    for missing in levels:
        columns.append(Column(f"{missing} missing", f"mean_{missing}", _accuracy))
        if missing:
            columns.append(Column("worst", f"worst_{missing}", _accuracy))
    empty = dict.fromkeys(column.key for column in columns)
    return Table(tuple(columns), [empty | _flat(row) for row in rows])


def comparison_markdown(comparison: PartitionComparison) -> str:
    """The table with its provenance, for a document."""
    data = comparison.data
    return (
        f"Teacher {comparison.teacher}: {percent(comparison.teacher_accuracy)} on the {data.split} split of "
        f"{data.name} ({data.samples:,} samples; the probe is fitted to {data.fit:,} of train); "
        f"{comparison.parts} parts, seed {comparison.seed}; {comparison.machine['processor']}; version "
        f"{comparison.code_version}.\n\n{as_markdown(comparison_table(comparison.rows))}"
    )


def comparison_plot(rows: Sequence[PartitionRow], teacher_accuracy: float) -> str:
    """Probe accuracy of every method and graph with half and with all but one of the parts missing, as SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    methods = list(dict.fromkeys(row.method for row in rows))

    def draw(axes: Axes) -> None:
        axes.axvline(100 * teacher_accuracy, color=drawing.GREEN, linestyle=(0, (6, 3)), label="teacher")
        for number, (graph, colour) in enumerate(_COLOURS.items()):
            mine = [row for row in rows if row.graph == graph and row.measures]
            heights = [methods.index(row.method) + 0.3 * number - 0.15 for row in mine]
            levels = zip(*(row.probe[1:] for row in mine), strict=True)
            looks = (("o", colour, "half"), ("D", "none", "all but one"))
            for level, (marker, fill, words) in zip(levels, looks, strict=False):
                mean, worst = [100 * row.mean for row in level], [100 * row.worst for row in level]
                axes.hlines(heights, worst, mean, color=colour, linewidth=1.6, alpha=0.5)
                axes.plot(mean, heights, marker, color=colour, markerfacecolor=fill, label=f"{words} missing, {graph}")
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy of the filters left, %: mean of all sets to the worst")
        axes.grid(axis="x", **drawing.GRID)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2, fontsize=9.5)

    figure = drawing.svg("partition", "Partitioners compared", (8.2, 1.9 + 0.55 * len(methods)), draw)
    return drawing.on_white(figure)


def _flat(row: PartitionRow) -> dict[str, object]:
    """The values of one row by column."""
    flat: dict[str, object] = {"method": row.method, "graph": row.graph}
    if row.measures is None:
        return flat
    for level in row.probe:
        flat |= {f"mean_{level.missing}": level.mean, f"worst_{level.missing}": level.worst}
    sizes = (row.measures.sizes, row.measures.num_dropped)
    return flat | vars(row.measures) | {"sizes": sizes, "stability": row.stability, "seconds": row.seconds}


def _sizes(value: tuple[Sequence[int], int]) -> str:
    """Smallest to largest part, and the number of filters in no part."""
    sizes, dropped = value
    extent = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)}–{max(sizes)}"
    return f"{extent}, {dropped} dropped" if dropped else extent


def _three(value: float) -> str:
    return f"{value:.3f}"


def _accuracy(value: float) -> str:
    return percent(value, 1)
