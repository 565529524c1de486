"""Availability of an accuracy, and accuracy without each pair of devices: numbers, tables and figures.

Both are exact where the table has all subsets; beyond, availability is estimated from draws of each law. The
availability of a level is the probability of the subsets whose accuracy reaches it; with devices that fail and recover
independently, it is the long-run share of the time.

Limits: only figures need more than NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.laws import Groups, Independent, Law
from nonn.reliability.sampled_evidence import AnyEvidence, SampledEvidence
from nonn.reliability.subsets import independent_law
from nonn.report import drawing
from nonn.report.document import Availability, AvailabilityCurve, LevelShare, Report
from nonn.report.table import Column, IntervalColumn, Table, percent, points_of, share_of, show_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "availability",
    "availability_plot",
    "availability_table",
    "correlated",
    "one_or_all",
    "pair_plot",
    "pair_table",
    "report_laws",
]

FloatArray = NDArray[np.float64]

_LEVELS = 1000  # steps from 0 to 100 % of accuracy
_HARDER = (0.3, 0.5)  # laws shown next to the bundle's own
_COMMON = 0.5  # share of failures with a common cause, in the correlated law
_STEPS = (1, 2, 5, 10, 20, 50, 100)  # between levels of the table, in thousandths
_STATED = 10  # levels of the table
_RARE = 1e-4  # share of the time below the first of them
_PAIRS = 10  # worst pairs shown in the table
_ANNOTATED = 10  # devices up to which a number fits into a cell of the heat map


def one_or_all(p_fail: Sequence[float]) -> float | tuple[float, ...]:
    """Probability of failure of every device [N], or one number where it is the same for all."""
    return p_fail[0] if len(set(p_fail)) == 1 else tuple(p_fail)


def correlated(p_fail: Sequence[float]) -> Groups:
    """Devices that fail as often as given, but often together.

    Half of the failures of the most reliable device of each group have a cause that takes the whole group down; the
    groups are the first and the second half of the devices, as with two access points or power supplies. The other
    failures are independent, so that each device keeps its probability.

    Args:
        p_fail: probability with which each device does not answer [N].

    Source: the beta-factor model of common-cause failures (IEC 61508-6, annex D), with one factor for each group.
    """
    n, half = len(p_fail), -(-len(p_fail) // 2)
    groups = [group for group in (list(range(half)), list(range(half, n))) if group]
    p_group = [_COMMON * min(p_fail[i] for i in group) for group in groups]
    own = [1 - (1 - p_fail[i]) / (1 - cause) for group, cause in zip(groups, p_group, strict=True) for i in group]
    text = f"groups {groups} p_group=[{_numbers(p_group)}] p=[{_numbers(own)}]"
    return Groups(groups, np.array(p_group), np.array(own).clip(0, 1), text)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def report_laws(p_fail: Sequence[float]) -> list[Law]:
    """The laws of a report: the given one, the same with common causes, and 0.3 and 0.5 for all devices.

    Args:
        p_fail: probability with which each device does not answer, independently [N].
    """
    alone = dict.fromkeys([tuple(map(float, p_fail)), *((p,) * len(p_fail) for p in _HARDER)])
    laws: list[Law] = [Independent(np.array(each), independent_law(each)) for each in alone]
    return [laws[0], correlated(p_fail), *laws[1:]]


def availability(evidence: AnyEvidence, p_fail: Sequence[float]) -> Availability:
    """Share of the time in which accuracy reaches a level, over the levels 0, 0.001 … 1.

    Args:
        evidence: accuracy of each subset, and what the test set says about it.
        p_fail: probability with which each device does not answer, independently [N].

    Returns:
        Curves of the given law, of the same with common causes, and of 0.3 and 0.5 for all devices.
    """
    table = evidence.table
    accuracy, order = table.accuracy, np.argsort(table.accuracy)
    levels = np.arange(_LEVELS + 1) / _LEVELS
    starts = np.searchsorted(accuracy[order], levels)  # the first of the sets that reach the level
    curves = []
    laws = report_laws(p_fail)
    weights = [evidence.weights(law) for law in laws]
    stated = _stated(evidence, laws, weights)
    for law, unordered, rows in zip(laws, weights, stated, strict=True):
        share = np.append(unordered[order][::-1].cumsum()[::-1], 0.0)[starts].clip(0, 1)
        share[0] = 1.0  # every subset reaches it; the sum would differ by rounding
        p = one_or_all(law.p.tolist() if isinstance(law, Independent) else p_fail)
        common = None if isinstance(law, Independent) else _COMMON
        curves.append(
            AvailabilityCurve(p_fail=p, share=tuple(share.tolist()), stated=rows, law=law.text, common=common)
        )
    return Availability(levels=tuple(levels.tolist()), curves=tuple(curves))


def _stated(evidence: AnyEvidence, laws: Sequence[Law], weights: Sequence[FloatArray]) -> list[tuple[LevelShare, ...]]:
    """For each law, the levels at which any law's availability changes, with intervals."""
    levels = _ladder(evidence.table.accuracy, weights)

    def shares(accuracy: FloatArray) -> FloatArray:
        """Availability by law and level, in one row."""
        reached = np.searchsorted(levels, accuracy, side="right")  # number of levels that a subset reaches
        kept = [np.bincount(reached, law, len(levels) + 1)[::-1].cumsum()[::-1][1:] for law in weights]
        return np.concatenate(kept).clip(0, 1)

    found = shares(evidence.table.accuracy).reshape(len(laws), -1)
    ends = np.array(evidence.of(shares)).reshape(*found.shape, 2)
    if isinstance(evidence, SampledEvidence):
        for law, share, end in zip(laws, found, ends, strict=True):
            evidence.widen_shares(law, levels, share, end)
    # A level between two that are kept as often, to the digits shown, says nothing new.
    steps = [(np.round(found[:, k] - found[:, k - 1], 5) != 0).any() for k in range(1, len(levels))]
    new = [k for k in range(len(levels)) if any(steps[max(k - 1, 0) : k + 1])] or [len(levels) - 1]
    return [
        tuple(
            LevelShare(
                level=float(levels[k]),
                share=float(share[k]),
                interval=(float(end[k, 0]), float(end[k, 1])),
            )
            for k in new
        )
        for share, end in zip(found, ends, strict=True)
    ]


def _ladder(accuracy: FloatArray, laws: Sequence[FloatArray]) -> FloatArray:
    """Round levels from the accuracy that is nearly always kept under each law to the highest of any subset."""
    order = np.argsort(accuracy)
    ranked = accuracy[order]
    # The empty subset answers nothing; where it is not rare, the next accuracy is the first level of interest.
    low = min(
        ranked[np.searchsorted(law[order].cumsum(), _RARE)] or ranked[ranked > 0].min(initial=ranked[-1])
        for law in laws
    )
    first, last = math.floor(_LEVELS * low), math.ceil(_LEVELS * ranked[-1])
    step = next((s for s in _STEPS if last // s - first // s < _STATED), _STEPS[-1])
    levels: FloatArray = np.arange(max(first // step, 1), max(-(-last // step), first // step + 1) + 1) * step / _LEVELS
    return levels[levels <= 1]


def availability_table(availability: Availability, *, whole: bool = False) -> Table:
    """Share of the time in which accuracy reaches each level, one row per level.

    Args:
        availability: the section of the report.
        whole: show all levels, not only those at which the laws differ.
    """
    curves, levels = availability.curves, availability.levels
    columns = [Column("accuracy at least", "level", lambda value: f"{100 * value:g} %")]
    for i, curve in enumerate(curves):
        minor = i > 0 and not curve.common  # a harder law than the bundle's
        columns.append(Column(f"time, {_law(curve)}", f"share_{i}", _share, minor=minor))
        columns += [IntervalColumn("95 %", f"interval_{i}", show_interval(_share))] if curve.stated else []
    stated = [{row.level: row.interval for row in curve.stated} for curve in curves]
    shown = levels if whole else [*stated[0]] or levels[100::100]
    rows = []
    for level in shown:
        row: dict[str, object] = {"level": level}
        for i, curve in enumerate(curves):
            row |= {f"share_{i}": curve.share[levels.index(level)], f"interval_{i}": stated[i].get(level)}
        rows.append(row)
    return Table(tuple(columns), rows)


def pair_table(report: Report, limit: int | None = _PAIRS) -> Table:
    """The pairs of devices whose loss costs most, worst first; limit None for all pairs."""
    intact, pairs = report.accuracy_by_failures[0].mean, report.pair_losses
    nodes, measured = [device.node for device in report.devices], bool(report.pair_intervals)
    share, point = share_of(report.data.samples), points_of(report.data.samples)
    rows: list[dict[str, object]] = []
    for i, j in sorted(combinations(range(len(nodes)), 2), key=lambda pair: pairs[pair[0]][pair[1]]):
        row: dict[str, object] = {"first": nodes[i], "second": nodes[j], "accuracy": pairs[i][j]}
        row["loss"] = intact - pairs[i][j]
        if measured:
            row |= {"interval": report.pair_intervals[i][j], "loss_interval": report.pair_loss_intervals[i][j]}
        rows.append(row)
    columns = [
        Column("device", "first"),
        Column("and device", "second"),
        Column("accuracy without both", "accuracy", share),
        Column("lost, points", "loss", point),
    ]
    if measured:
        columns.insert(3, IntervalColumn("95 %", "interval", show_interval(share)))
        columns.append(IntervalColumn("95 %", "loss_interval", show_interval(point)))
    return Table(tuple(columns), rows[:limit])


def availability_plot(availability: Availability) -> str:
    """Availability curves as SVG: the bundle's law, the same with common causes, and harder laws.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    curves = availability.curves
    levels = [100 * level for level in availability.levels]
    looks: list[tuple[drawing.Stroke, float]] = [((0, (5, 2)), 1.7), ((0, (1, 1.4)), 1.7)]
    # Below the lowest accuracy of any set that answers, every curve is flat: the figure starts just left of its end.
    flat = [place for place in range(1, len(levels)) if all(c.share[place] == c.share[1] for c in curves)]
    ends = [place for place in range(1, len(levels)) if all(c.share[place] == 0 for c in curves)]
    start, end = levels[flat[-1]], levels[ends[0]] if ends else 100.0
    pad = max(0.08 * (end - start), 0.5)

    def draw(axes: Axes) -> None:
        harder = 0
        for number, curve in enumerate(curves):
            share = [100 * value for value in curve.share]
            line: drawing.Look = {"linestyle": "-", "linewidth": 2.4, "color": drawing.BLUE}
            label = f"each down {_often(curve.p_fail)}"
            if curve.common:
                line |= {"linewidth": 1.6, "color": drawing.GREEN}
                label = f"as often, {100 * curve.common:g} % of it together"
            elif number:
                stroke, width = looks[harder % len(looks)]
                line |= {"linestyle": stroke, "linewidth": width, "color": drawing.VERMILION}
                harder += 1
            axes.step(levels, share, where="pre", label=label, **line)
        axes.set_xlim(max(start - pad, 0.0), min(end + pad, 100.0))
        axes.set_ylim(0, 102)
        axes.set_xlabel("accuracy of at least, %")
        axes.set_ylabel("share of the time, %")
        axes.grid(**drawing.GRID)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)

    return drawing.svg("availability", "How often an accuracy is kept", (6.6, 4.2), draw)


def pair_plot(report: Report) -> str:
    """Heat map of pairs of devices as SVG: the stronger the colour, the more accuracy is lost without both.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    accuracy = np.array(report.pair_losses)
    loss = np.maximum(report.accuracy_by_failures[0].mean - accuracy, 0.0)
    # Above 0.6 the number in the cell is unreadable in one of the colour schemes.
    opacity = 0.6 * loss / (loss.max() or 1.0)
    names = [str(device.node) for device in report.devices]

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for (i, j), value in np.ndenumerate(accuracy):
            cell: drawing.Look = {"facecolor": drawing.VERMILION, "alpha": float(opacity[i, j]), "linewidth": 0}
            axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, **cell))
            if len(names) <= _ANNOTATED:
                axes.text(j, i, percent(value, 1)[:-2], ha="center", va="center", fontsize=9.5)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(range(len(names)), names)
            axis.set_label_text("device gone")
            axis.set_tick_params(length=0)
        for edge in axes.spines.values():
            edge.set_visible(False)

    return drawing.svg("pairs", "Accuracy when two devices are gone", (5.0, 4.8), draw)


def _law(curve: AvailabilityCurve) -> str:
    """The law of a curve as the title of a column."""
    p = "each its own p" if isinstance(curve.p_fail, tuple) else f"p={curve.p_fail:g}"
    return f"{p}, in halves" if curve.common else p


def _often(p_fail: float | tuple[float, ...]) -> str:
    return "as often as its class" if isinstance(p_fail, tuple) else f"{100 * p_fail:g} % of the time"


def _share(value: float) -> str:
    """A share of the time, with digits down to minutes in a month."""
    return percent(value, 3)
