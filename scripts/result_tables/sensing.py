"""Tables of nodes that sense: replayed recordings, cameras, units that are worn wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["cameras_markdown", "sensing_markdown", "worn_markdown"]


def sensing_markdown(found: Mapping[str, Any], life: Mapping[str, Any]) -> str:
    """Streamed accuracy by missing units next to the table's; then answers, delays, bytes and what a node used.

    Args:
        found: result of ``examples/sensing/demo.py`` at many times the speed of life.
        life: the same at the speed of life, for delays.
    """
    own = f", {found['node_anonymous_mb']:.1f} MB of it not pages of files" if "node_anonymous_mb" in found else ""
    lines = [
        _streamed(found, "units", "windows"),
        f"- An answer came {found['delay_p50_ms']:.0f} ms after the end of its window (median; 95 %: "
        f"{found['delay_p95_ms']:.0f} ms). At the speed of life: {life['delay_p50_ms']:.0f} ms (95 %: "
        f"{life['delay_p95_ms']:.0f} ms) in {life['windows']} windows; a node used {life['node_cpu_percent']:.1f} % of "
        "a core.",
        f"- {found['bytes_per_answer']:.0f} bytes an answer with headers of messages; the raw windows of the same "
        f"units are {found['raw_bytes_per_answer']:,.0f} in float32, {found['raw_over_sent']:.0f} times as many.",
        f"- A node took {found['node_rss_mb']:.1f} MB of memory{own}, and {found['node_cpu_percent']:.1f} % of a core "
        f"at {found['speed']:g} times the speed of life.",
    ]
    return "\n".join([*lines, *_with_goal(found, "units", "windows")])


def cameras_markdown(found: Mapping[str, Any]) -> str:
    """The same for cameras: accuracy, answers, and bytes of pictures."""
    lines = [
        _streamed(found, "cameras", "pictures"),
        f"- {found['bytes_per_answer']:.0f} bytes an answer with headers of messages; the pictures of the same cameras "
        f"are {found['raw_bytes_per_answer']:,.0f} bytes. A node took {found['node_rss_mb']:.1f} MB of memory.",
    ]
    return "\n".join([*lines, *_with_goal(found, "cameras", "pictures")])


def _streamed(found: Mapping[str, Any], units: str, windows: str) -> str:
    """Streamed accuracy by missing units next to the table's, and what was wrong with the answers."""
    head = f"| {units} missing | {windows} | streamed, % | table, % (same sets of {units}) |"
    lines = [head, "|---:|---:|---:|---:|"]
    by_missing: dict[int, list[Any]] = {}
    most = max(len(row["units"]) for row in found["rows"])
    for row in found["rows"]:
        by_missing.setdefault(most - len(row["units"]), []).append(row)
    for missing, rows in sorted(by_missing.items()):
        number = sum(row["windows"] for row in rows)
        shown = (100 * sum(row[key] * row["windows"] for row in rows) / number for key in ("streamed", "table"))
        lines.append(f"| {missing} | {number} | {' | '.join(f'{value:.1f}' for value in shown)} |")
    differ = sum(not row["agrees"] for row in found["rows"])
    lines += [
        "",
        f"- {found['windows']} {windows}: {found['answers_missing']} answers missing while a {units[:-1]} senses, "
        f"{found['masks_with_a_unit_that_did_not_sense']} masks with a {units[:-1]} that did not sense, "
        f"{100 * found['equal_to_offline']:.1f} % of the labels equal to the offline fusion of the same {windows} and "
        f"{units}; {differ} of {len(found['rows'])} sets of {units} differ from the table.",
    ]
    return "\n".join(lines)


def _with_goal(found: Mapping[str, Any], units: str, windows: str) -> list[str]:
    """A line on the replay with an accuracy goal, if there was one."""
    if not (goal := found.get("goal")):
        return []
    shares = (f"{name} {100 * goal[key]:.1f} %" for name, key in (("streamed", "accuracy"), ("table", "table")))
    return [
        f"- With an accuracy goal of {goal['accuracy_goal']:g}, without failures, {goal['units_mean']:.1f} {units} "
        f"work: {goal['bytes_per_answer']:.0f} bytes an answer, {', '.join(shares)} ({goal['windows']} {windows}, "
        f"{goal['answers_missing']} answers missing)."
    ]


def worn_markdown(found: Mapping[str, Any]) -> str:
    """A row for each way in which a unit is worn wrongly, from ``benchmarks/worn.py``."""
    lines = [
        "| one unit is | units quarantined | after windows (median) | left out of windows, % | accuracy, % |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        after, shares = row["windows_to_quarantine_median"], (row["left_out"], row["accuracy"])
        cells = [row["fault"], str(row["quarantined_units"]), "–" if after is None else f"{after:g}"]
        lines.append(f"| {' | '.join([*cells, *(f'{100 * share:.1f}' for share in shares)])} |")
    return "\n".join(lines)
