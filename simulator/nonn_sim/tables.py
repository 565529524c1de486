"""Figures of runs as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from nonn.reliability.subsets import members

if TYPE_CHECKING:
    from nonn_sim.liars import Honest, Lied

__all__ = ["print_liars", "print_live", "print_rows"]

_SETS = 8  # subsets shown with their share of the requests
MIN_WIDTH = 170  # in a narrower terminal lines wrap, which is easier to read than wrapped cells


def print_rows(result: dict[str, Any]) -> None:
    """A row for each deployment, then accuracy over time of the first."""
    console = Console(soft_wrap=True)
    console.width = max(console.width, MIN_WIDTH)
    seeds = len(result["seeds"])
    title = f"{result['scenario']}, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    table = Table(title=title)
    columns = (
        "deployment",
        "accuracy",
        "new samples",
        "available",
        "degraded",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "waited",
        "J",
        "bytes",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "deployment" else "right")
    for row in result["rows"]:
        over = row.get("over_seeds") or {}
        table.add_row(
            row["deployment"],
            _between(row, "accuracy", over),
            _new_samples(row),
            _between(row, "availability", over),
            _percent(row["degraded"]),
            *(_ms(row["latency_s"][key]) for key in ("p50", "p95", "p99")),
            f"{row['deadline_hits']:,}",
            _number(row["energy_j_per_answer"], "{:.3g}"),
            _number(row["bytes_per_answer"], "{:,.0f}"),
        )
    console.print(table)
    console.print(
        "accuracy of answers; in brackets 95 % intervals by batch means, for another run; new samples: 95 % interval "
        "of the accuracy from the size of the test set; waited: requests held up to the deadline; J and bytes per "
        "answer",
        markup=False,
    )
    for row in result["rows"]:
        console.print(f"{row['deployment']}: {row['note']}", markup=False)
    for line in result["not_compared"]:
        console.print(f"not compared: {line}", markup=False)
    first = result["rows"][0]
    for kept in first["levels"]:
        console.print(_level_line(first["deployment"], kept, seeds), markup=False)
    over_time = Table(title=f"{first['deployment']} over time")
    for column in ("from s", "requests", "available", "accuracy", "new samples"):
        over_time.add_column(column, justify="right")
    for window in first["windows"]:
        over_time.add_row(
            f"{window['from_s']:,.0f}",
            f"{window['requests']:,}",
            _percent(window["availability"]),
            _percent(window["accuracy"]),
            _new_samples(window),
        )
    console.print(over_time)


def print_liars(honest: Honest, rows: Sequence[Lied]) -> None:
    """A row for each lie, then what the test costs honest devices."""
    console = Console(soft_wrap=True)
    console.width = max(console.width, MIN_WIDTH)
    table = Table(title="accuracy when devices send wrong features")
    columns = (
        "lie",
        "liars",
        "dead",
        "without test",
        "with test",
        "worst loss",
        "stated",
        "caught",
        "quarantine after",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "lie" else "right")
    for row in rows:
        table.add_row(
            row.lie,
            str(row.liars),
            *(_known(vars(row), key, f"{key}_interval") for key in ("dead", "unscreened", "screened")),
            "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * end for end in (row.worst, *row.worst_interval))),
            _known(vars(row), "stated", "stated_interval"),
            _percent(row.caught),
            "–" if row.first_quarantine is None else f"{row.first_quarantine:,.0f}",
        )
    console.print(table)
    excluded, quarantines = (sum(getattr(row, f"honest_{key}") for row in rows) for key in ("excluded", "quarantines"))
    console.print(
        "dead: the liars do not answer; worst loss: in points against dead, of the worst set of liars; caught: lies "
        "that were not fused; quarantine after: requests until every liar was in quarantine; in brackets 95 % "
        "intervals for new samples",
        markup=False,
    )
    console.print(f"honest devices next to liars: {excluded} exclusions, {quarantines} quarantines", markup=False)
    console.print(
        f"without a lie, {honest.requests:,} requests: {honest.excluded} exclusions, {honest.quarantines} quarantines; "
        f"the distinct samples support a rate of at most {honest.rate_bound:.1e} (95 % confidence)",
        markup=False,
    )


def print_live(result: dict[str, Any]) -> None:
    """Prints simulated and measured figures."""
    console = Console(soft_wrap=True)
    simulated, measured, difference = result["simulated"], result["measured"], result["difference"]
    table = Table(title=f"{result['scenario']}: simulated and measured")
    for column in ("", "simulated", "measured", "difference"):
        table.add_column(column, justify="left" if not column else "right")
    points, p99 = difference["accuracy_points"], difference["p99_share"]
    labelled = measured["accuracy"] is not None
    key, ends = ("accuracy", "accuracy_interval") if labelled else ("accuracy_of_sets", "test_interval")
    table.add_row(
        "accuracy",
        _known(simulated, "accuracy", "test_interval"),
        _known(measured, key, ends),
        _number(points, "{:+.2f} points"),
    )
    if labelled:
        table.add_row(
            "accuracy of the sets",
            _known(simulated, "accuracy_of_sets", "test_interval"),
            _known(measured, "accuracy_of_sets", "test_interval"),
            _number(difference.get("sets_points"), "{:+.2f} points"),
        )
    for key in ("p50", "p95", "p99"):
        share = _number(p99, "{:+.1%}") if key == "p99" else ""
        table.add_row(f"{key} ms", _ms(simulated["latency_s"][key]), _ms(measured["latency_s"][key]), share)
    for key in ("availability", "degraded"):
        table.add_row(key, _percent(simulated[key]), _percent(measured[key]))
    shares = simulated["sets"], measured["sets"]
    for mask in sorted({*shares[0], *shares[1]}, key=lambda mask: -max(s.get(mask, 0.0) for s in shares))[:_SETS]:
        named = "devices " + " ".join(map(str, members(mask))) if mask else "no answer"
        table.add_row(named, *(_percent(s.get(mask, 0.0)) for s in shares))
    table.add_row("total variation of the sets", "", "", _number(difference["sets_variation"], "{:.2%}"))
    table.add_row("lost", _number(simulated["lost"], "{:.0f}"), str(measured["lost"]))
    console.print(table)
    for problem in result["problems"]:
        console.print(problem, markup=False)
    if measured["disturbed"]:
        console.print(
            f"{measured['disturbed']} requests took longer than deadline and calibration explain: other programs "
            "used this machine; run again when it is idle",
            markup=False,
        )
    if measured["p99_interval_s"] is None:
        console.print("too few answers for an interval of the p99: set a longer scenario.duration_s", markup=False)
    else:
        low, high = measured["p99_interval_s"]
        console.print(f"measured p99, 95 % interval: {_ms(low)} to {_ms(high)} ms", markup=False)
    if not difference["conclusive"]:
        console.print(
            "this comparison is inconclusive: the interval is too wide, the speed of the machine changed during the "
            "run, or a fault or its end failed; run longer, or when it is idle",
            markup=False,
        )
    calibration = result["calibration"]
    console.print(
        f"service and link times from {calibration['requests']} requests of this cluster before the first fault "
        f"and after the last (p50 {_ms(calibration['latency_s']['p50'])} ms, after / before "
        f"{_number(calibration['drift'], '{:.2f}')}); simulated: median over several draws",
        markup=False,
    )


def _known(row: dict[str, Any], key: str, ends: str) -> str:
    """An accuracy with its interval for new samples in brackets."""
    interval = row.get(ends)
    return _percent(row[key]) + ("" if interval is None else f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})")


def _between(row: dict[str, Any], key: str, over: dict[str, Any]) -> str:
    """A figure with its deviation over seeds, or with its interval where there is one seed."""
    ends = row["intervals"][key]
    if over or ends is None:
        return _percent(row[key], over.get(key))
    return f"{_percent(row[key])} ({100 * ends[0]:.2f}–{100 * ends[1]:.2f})"


def _level_line(deployment: str, kept: dict[str, Any], seeds: int) -> str:
    """How often an accuracy is reached, and when it is first missed; of the first seed."""
    ends, missed_s = kept["interval"], kept["first_missed_s"]
    between = "" if ends is None else f" (95 %: {100 * ends[0]:.2f} to {100 * ends[1]:.2f} %)"
    missed = "never missed" if missed_s is None else f"first missed after {missed_s:,.0f} s"
    of_first = ", first seed" if seeds > 1 else ""
    return (
        f"{deployment}{of_first}: accuracy of at least {kept['level']:.2%} in {_percent(kept['reached'])} of the "
        f"requests{between}, {missed}"
    )


def _new_samples(row: dict[str, Any]) -> str:
    """The interval of an accuracy for new samples."""
    return "{:.1%} to {:.1%}".format(*row["test_interval"]) if "test_interval" in row else "–"


def _percent(value: float | None, over: dict[str, float] | None = None) -> str:
    if over:
        return f"{over['mean']:.2%} ± {100 * over['sd']:.2f}"
    return _number(value, "{:.2%}")


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{1e3 * value:.1f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
