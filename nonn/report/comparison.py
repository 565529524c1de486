"""The comparison of partitioners as a table and a figure; see ``nonn.partition.compare`` for what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nonn.report import plots
from nonn.report.table import Column, Table, TextColumn, as_markdown, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["comparison_markdown", "comparison_plot", "comparison_table"]

_COLOURS = {"co-activation": plots.BLUE, "nonn": plots.VERMILION}


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """All methods on all graphs; what could not be measured is a dash."""
    levels = [level["missing"] for level in _measured(comparison)[0]["probe"]] if _measured(comparison) else []
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
        Column("ms", "seconds", lambda value: "–" if value is None else f"{1000 * value:.1f}"),
    ]
    for missing in levels:
        columns.append(Column(f"{missing} missing", f"mean_{missing}", _accuracy))
        if missing:
            columns.append(Column("worst", f"worst_{missing}", _accuracy))
    return Table(tuple(columns), [_flat(row, levels) for row in comparison["rows"]])


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """The table with where it comes from, for a document."""
    data = comparison["data"]
    return (
        f"Teacher {comparison['teacher']}: {percent(comparison['teacher_accuracy'])} on the {data['split']} split of "
        f"{data['name']} ({data['samples']:,} samples; the probe is fitted to {data['fit']:,} of train); "
        f"{comparison['parts']} parts, seed {comparison['seed']}; {comparison['machine']['processor']}; version "
        f"{comparison['code_version']}.\n\n{as_markdown(comparison_table(comparison))}"
    )


def comparison_plot(comparison: Mapping[str, Any]) -> str:
    """Probe accuracy of every method and graph with half and with all but one of the parts missing, as SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    methods = list(dict.fromkeys(row["method"] for row in comparison["rows"]))
    rows = _measured(comparison)

    def draw(axes: Axes) -> None:
        axes.axvline(100 * comparison["teacher_accuracy"], color=plots.GREEN, linestyle=(0, (6, 3)), label="teacher")
        for number, (graph, colour) in enumerate(_COLOURS.items()):
            mine = [row for row in rows if row["graph"] == graph]
            heights = [methods.index(row["method"]) + 0.3 * number - 0.15 for row in mine]
            for level, (marker, fill, words) in zip(
                mine[0]["probe"][1:] if mine else (),
                (("o", colour, "half"), ("D", "none", "all but one")),
                strict=False,
            ):
                place = mine[0]["probe"].index(level)
                mean, worst = ([100 * row["probe"][place][key] for row in mine] for key in ("mean", "worst"))
                axes.hlines(heights, worst, mean, color=colour, linewidth=1.6, alpha=0.5)
                axes.plot(mean, heights, marker, color=colour, markerfacecolor=fill, label=f"{words} missing, {graph}")
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy of the filters left, %: mean of all sets to the worst")
        axes.grid(axis="x", **plots.GRID)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2, fontsize=9.5)

    return plots.svg("partition", "Partitioners compared", (8.2, 1.9 + 0.55 * len(methods)), draw)


def _measured(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows whose method could cut the graph."""
    return [row for row in comparison["rows"] if row["measures"] is not None]


def _flat(row: Mapping[str, Any], levels: Sequence[int]) -> dict[str, Any]:
    """One row with a key for every column."""
    measures = row["measures"]
    if measures is None:
        empty = ("sizes", "balance", "normalised_cut", "modularity", "kept_correlation", "stability", "seconds")
        keys = [*empty, *(f"{kind}_{missing}" for missing in levels for kind in ("mean", "worst"))]
        return {"method": row["method"], "graph": row["graph"], **dict.fromkeys(keys)}
    accuracies = {f"{key}_{level['missing']}": level[key] for level in row["probe"] for key in ("mean", "worst")}
    return {**row, **measures, **accuracies, "sizes": (measures["sizes"], measures["num_dropped"])}


def _sizes(value: tuple[Sequence[int], int] | None) -> str:
    """Smallest to largest part, and how many filters no part has."""
    if value is None:
        return "–"
    sizes, dropped = value
    extent = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)}–{max(sizes)}"
    return f"{extent}, {dropped} dropped" if dropped else extent


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _accuracy(value: float | None) -> str:
    return "–" if value is None else percent(value, 1)
