"""Tables of methods: what each is worth alone, and MoDNN next to fused students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

__all__ = ["methods_markdown", "modnn_markdown"]


def methods_markdown(found: Mapping[str, Any]) -> str:
    """A row for each method, mean and deviation over seeds, and its difference from the labels alone, same seeds.

    Below are the methods whose difference has the same sign in every seed.
    """
    rows = {name: row["runs"] for name, row in found["rows"].items()}
    shown, versions = (0, 4, 7), {run["code_version"] for runs in rows.values() for run in runs.values()}
    lines = [
        "| next to the labels | seeds | 0 failed | 4 failed | 7 failed | worth at 0 | at 4 | at 7 | CEV at 4 |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    differences: dict[str, list[list[float]]] = {}  # of each level and seed
    for name, by_seed in rows.items():
        next_to = found["rows"][name].get("next_to", "labels")
        runs, labels = list(by_seed.values()), [rows[next_to][seed] for seed in by_seed]
        levels, base = (
            [[100 * run["accuracy_by_failures"][failed] for run in some] for failed in shown] for some in (runs, labels)
        )
        spread = [f" ± {stdev(level):.1f}" if len(level) > 1 else "" for level in levels]
        cells = [f"{mean(level):.1f}{sd} %" for level, sd in zip(levels, spread, strict=True)]
        gaps = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(levels, base, strict=True)]
        worth = [f"{mean(gap):+.1f}" for gap in gaps]
        title = f"together: {', '.join(found['together'])}" if name == "together" else name
        cev = f"{mean(run['cev'][4] for run in runs):.2f}"
        lines.append(f"| {title} | {len(runs)} | {' | '.join([*cells, *worth, cev])} |")
        if not name.startswith("labels") and len(runs) > 1:
            differences[name] = gaps
    teacher = mean(run["teacher"] for run in rows["labels"].values())
    machine = ", ".join(f"{key} {value}" for key, value in sorted(found["machine"].items()))
    ends = [f"Teacher {teacher:.1%}; {machine}; {', '.join(sorted(versions))}."]
    return "\n".join([*lines, *_in_every_seed(differences, shown), "", *ends])


def _in_every_seed(differences: Mapping[str, Sequence[Sequence[float]]], shown: Sequence[int]) -> list[str]:
    """Lines that name the methods whose differences have one sign in all seeds; none for a single seed."""
    if not differences:
        return []
    seeds = min(len(gaps[0]) for gaps in differences.values())
    lines = ["", f"By chance one row in {2**seeds} would be in each of these lists:", ""]
    for word, sign in (("better", 1), ("worse", -1)):
        for level, failed in enumerate(shown):
            names = [f"`{name}`" for name, gaps in differences.items() if all(sign * gap > 0 for gap in gaps[level])]
            lines.append(f"- {word} in every seed, {failed} failed: {', '.join(names) or 'none'}")
    return lines


def modnn_markdown(found: Mapping[str, Any]) -> str:
    """A row for each property of an answer; a column for layers that are split and for students that are fused."""
    ways = [found["rows"][name] for name in ("layers split", "students fused")]
    after = f"degraded, {100 * ways[1]['expected_accuracy_after']:.1f} % expected"
    cells = (
        ("bytes of an answer, requests and replies", [f"{way['bytes']:,}" for way in ways]),
        ("messages of an answer", [str(way["messages"]) for way in ways]),
        ("rounds, one after the other", [str(way["rounds"]) for way in ways]),
        ("latency, median and 95 %", [f"{way['p50_ms']:.0f} and {way['p95_ms']:.0f} ms" for way in ways]),
        ("the answer while a node is killed", ["lost" if way["lost_in_kill"] else "given" for way in ways]),
        ("answers after that", ["lost" if way["lost_after"] else after for way in ways]),
    )
    return "\n".join(
        [
            "| | layers split | students fused |",
            "| :--- | ---: | ---: |",
            *(f"| {title} | {' | '.join(row)} |" for title, row in cells),
            "",
            f"{found['requests']} requests, {found['nodes']} nodes. The split student alone, in one process, "
            f"takes {found['one_process_p50_ms']:.1f} ms. {found['code_version']}.",
        ]
    )
