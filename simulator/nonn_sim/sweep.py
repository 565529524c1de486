"""Sweeps: one figure against another, over values of a scenario's keys or of a failure law.

A sweep is a grid of points: every combination of the values of its axes, or, one at a time, the first value of every
axis and each other value alone. A scenario's axes are its keys (``nodes.mtbf_s``, ``policy.deadline_s``); a law's axes
are the names in braces of its text (``independent p={p}``), and ``devices``, the number of devices in use: the first
ones of the bundle.

Points share the seeds, and so arrivals and draws: differences between points vary less than the points themselves.
"""

from __future__ import annotations

import copy
import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.reliability.evidence import Evidence
from nonn.reliability.intervals import share_interval
from nonn.reliability.laws import assess, parse_law
from nonn.reliability.table import SubsetTable
from nonn.toml import override, parse_toml, toml_value
from nonn_sim.scenario_file import parse_scenario
from nonn_sim.simulate import simulate_many

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Axis", "parse_axis", "points", "sweep_law", "sweep_scenario", "sweep_svg", "swings", "tornado_svg"]

Row = dict[str, Any]
MAX_POINTS = 10_000
_FIGURES = ("accuracy", "accuracy_per_request", "availability", "degraded", "energy_j_per_answer")
_LINES = 6  # lines of a figure
_BARS = 20  # of a tornado


@dataclass(frozen=True)
class Axis:
    """Values of one key.

    Attributes:
        key: dotted key of a scenario, or name in a law.
        values: TOML values, the first of them the base.
    """

    key: str
    values: tuple[Any, ...]


def parse_axis(text: str) -> Axis:
    """Reads ``KEY=V1,V2,…``; values are TOML.

    Raises:
        ConfigError: it does not have that form.
    """
    key, _, values = text.partition("=")
    try:
        found = tomllib.loads(f"values = [{values}]")["values"] if "\n" not in values else []
    except tomllib.TOMLDecodeError:
        found = []
    if not key.strip() or not found:
        raise ConfigError(f"--vary {text}: write KEY=V1,V2, for example nodes.mtbf_s=3600,86400")
    return Axis(key.strip(), tuple(found))


def points(axes: Sequence[Axis], one_at_a_time: bool = False) -> list[Row]:
    """The points of a sweep: key → value.

    Raises:
        ConfigError: a key is given twice, or there are more than 10,000 points.
    """
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--vary {key}: given twice; list its values in one --vary")
    if one_at_a_time:
        base = {axis.key: axis.values[0] for axis in axes}
        return [base, *({**base, axis.key: value} for axis in axes for value in axis.values[1:])]
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_POINTS:
        raise ConfigError(f"--vary: {count:,} combinations; a sweep has at most {MAX_POINTS:,}")
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def sweep_scenario(
    path: Path, bundle: Bundle, grid: Sequence[Row], *, seeds: int = 1, backend: str = "local"
) -> list[Row]:
    """Simulates a scenario at every point.

    Args:
        path: the scenario file.
        bundle: the artifact.
        grid: the points.
        seeds: seeds of each point, from the scenario's own upwards.
        backend: backend that computes the runs.

    Returns:
        Each point with its figures, means over the seeds; for several seeds, ``…_sd`` is their standard deviation.

    Raises:
        ConfigError: a key does not exist, or a value is impossible.
    """
    tree = parse_toml(path)
    scenarios = []
    for point in grid:
        changed = copy.deepcopy(tree)
        for key, value in point.items():
            override(changed, f"{key}={toml_value(value)}")
        shown = ", ".join(f"{key} = {toml_value(value)}" for key, value in point.items())
        scenarios.append(parse_scenario(changed, source=f"{path} with {shown}"))
    rows = []
    for point, row in zip(grid, simulate_many(scenarios, bundle, seeds=seeds, backend=backend), strict=True):
        over = row.get("over_seeds", {})
        figures = {name: row[name] for name in _FIGURES}
        figures |= {f"latency_{p}_s": row["latency_s"][p] for p in ("p50", "p95", "p99")}
        for name in tuple(figures):
            if over:
                figures[name] = over[name] and over[name]["mean"]
                figures[f"{name}_sd"] = over[name] and over[name]["sd"]
        for name in ("accuracy", "accuracy_per_request"):
            known = None if figures[name] is None else share_interval(figures[name], bundle.accuracies.samples)
            figures |= _ends(name, known)
        rows.append({**point, **figures})
    return rows


def _ends(name: str, interval: tuple[float, float] | None) -> Row:
    """The ends of the 95 % interval of a figure for new test samples."""
    return dict(zip((f"{name}_low", f"{name}_high"), interval or (None, None), strict=True))


def sweep_law(text: str, evidence: Evidence, grid: Sequence[Row], levels: Sequence[float] = ()) -> list[Row]:
    """Accuracy under a failure law at every point, exact for the test set.

    Args:
        text: the law, with the keys of the points in braces.
        evidence: accuracy of all subsets, and what the test set says about it.
        grid: the points.
        levels: accuracies whose availability is computed.

    Returns:
        Each point with its figures; ``…_low`` and ``…_high`` are the 95 % interval for new test samples.

    Raises:
        ConfigError: a key is not in the law, or the law is invalid at a point.
    """
    rows, table = list[Row](), evidence.table
    for point in grid:
        law, num_devices = text, table.num_devices
        for key, value in point.items():
            if key == "devices":
                if type(value) is not int or not 1 <= value <= table.num_devices:
                    raise ConfigError(f"--vary devices: {value!r} is not a number of devices, 1 to {table.num_devices}")
                num_devices = value
            elif f"{{{key}}}" not in law:
                raise ConfigError(
                    f"--vary {key}: the law '{text}' has no {{{key}}}; write for example 'markov {key}={{{key}}}'"
                )
            law = law.replace(f"{{{key}}}", toml_value(value))
        used = SubsetTable(table.correct[: 1 << num_devices], table.samples)
        parsed = parse_law(law, num_devices)
        outcome = assess(used, parsed, levels)
        tail = outcome.quantiles[0.01]  # the accuracy of one subset
        chance = np.zeros(1 << table.num_devices)
        chance[: 1 << num_devices] = parsed.probabilities()
        row = {**point, "expected": outcome.expected, **_ends("expected", evidence.mean(chance[None])[0])}
        row |= {"sd": outcome.sd, "accuracy_p01": tail, **_ends("accuracy_p01", share_interval(tail, table.samples))}
        for kept in outcome.levels:
            row[f"availability_{kept.level:g}"] = kept.availability
            if kept.first_passage is not None:
                row[f"first_fall_{kept.level:g}_s"] = kept.first_passage.mean_s
        rows.append(row)
    return rows


def swings(axes: Sequence[Axis], rows: Sequence[Row], figure: str) -> list[Row]:
    """What matters most: how far each axis alone moves a figure from the base, the largest range first.

    Args:
        axes: the axes.
        rows: rows of a sweep one at a time, the base first.
        figure: name of the figure.

    Raises:
        ConfigError: there is no such figure.
    """
    _check_figure(rows, figure)
    base, found = rows[0][figure], []
    rest = iter(rows[1:])
    for axis in axes:
        values = [base, *(next(rest)[figure] for _ in axis.values[1:])]
        known = [value for value in values if value is not None] or [0.0]
        low, high = min(known), max(known)
        found.append({"key": axis.key, "base": base, "low": low, "high": high, "range": high - low})
    return sorted(found, key=lambda row: -row["range"])


def sweep_svg(axes: Sequence[Axis], rows: Sequence[Row], figure: str) -> str:
    """A figure against the first axis, a line for each combination of the others, at most six.

    Raises:
        ConfigError: there is no such figure, or the first axis is not numeric.
        MissingExtraError: matplotlib is not installed.
    """
    from nonn.report import drawing

    _check_figure(rows, figure)
    first, others = axes[0], axes[1:]
    if not all(isinstance(value, int | float) for value in first.values):
        raise ConfigError(f"--svg: the values of the first --vary, {first.key}, must be numbers")
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if row[figure] is not None and math.isfinite(row[figure]):
            label = tuple(row[axis.key] for axis in others)
            lines.setdefault(label, []).append((row[first.key], row[figure]))
    colours = (drawing.BLUE, drawing.VERMILION, drawing.GREEN, drawing.ORANGE, drawing.PURPLE, drawing.SKY)
    wide = min(first.values) > 0 and max(first.values) >= 30 * min(first.values)

    def draw(axes_: Axes) -> None:
        for (label, line), colour in zip(itertools.islice(lines.items(), _LINES), colours, strict=False):
            shown = ", ".join(f"{axis.key} {value}" for axis, value in zip(others, label, strict=True))
            axes_.plot(*zip(*sorted(line), strict=True), "o-", color=colour, label=shown or None)
        if wide:
            axes_.set_xscale("log")
        axes_.set_xlabel(first.key, parse_math=False)
        axes_.set_ylabel(figure, parse_math=False)
        axes_.grid(**drawing.GRID)
        if others:
            axes_.legend()

    return drawing.on_white(drawing.svg("sweep", f"{figure} against {first.key}", (5.9, 3.6), draw))


def tornado_svg(ranges: Sequence[Row], figure: str) -> str:
    """What matters most, as bars from the lowest to the highest value of a figure, the widest on top.

    Args:
        ranges: the rows of ``swings``.
        figure: name of the figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from nonn.report import drawing

    shown = [row for row in ranges if row["base"] is not None and math.isfinite(row["range"])][:_BARS]
    base = shown[0]["base"] if shown else 0.0

    def draw(axes: Axes) -> None:
        for place, row in enumerate(shown):
            for end, colour in ((row["low"], drawing.VERMILION), (row["high"], drawing.BLUE)):
                axes.barh(place, end - base, left=base, height=0.62, color=colour)
            axes.annotate(f"{row['range']:.3g}", (row["high"], place), (5, 0), textcoords="offset points", va="center")
        axes.axvline(base, color=drawing.INK, linewidth=1.0)
        axes.set_yticks(range(len(shown)), [row["key"] for row in shown], parse_math=False)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.14)
        axes.set_xlabel(f"{figure}; the line is the base, numbers are ranges", parse_math=False)
        axes.grid(axis="x", **drawing.GRID)
        axes.set_axisbelow(True)

    label = f"What matters most for {figure}"
    return drawing.on_white(drawing.svg("tornado", label, (6.6, 1.2 + 0.36 * max(1, len(shown))), draw))


def _check_figure(rows: Sequence[Mapping[str, Any]], figure: str) -> None:
    if figure not in rows[0] or isinstance(rows[0][figure], str):
        raise ConfigError(f"--figure {figure}: this sweep has {', '.join(rows[0])}")
