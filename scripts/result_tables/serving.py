"""Tables of live clusters: scaling, nodes that lie, a fleet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["liars_markdown", "pi_markdown", "scaling_markdown"]


def scaling_markdown(found: Mapping[str, Any]) -> str:
    """A row for each number of nodes; each cell has nonn and, after a slash, the bare fan-out."""
    lines = [
        "| nodes | asked | p50, ms | p50 ÷ | p99, ms | answers a second | processor, ms an answer: front | all | "
        "memory, MB: front | each node |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:

        def pair(key: str, form: str, row: Mapping[str, Any] = row) -> str:
            return " / ".join(format(row[f"{name}_{key}"], form) for name in ("nonn", "floor"))

        cells = [str(row["nodes"]), str(row["asked"]), pair("p50_ms", ".1f"), f"{row['p50_ratio']:.2f}"]
        cells += [pair("p99_ms", ".1f"), pair("per_s", ".0f"), pair("front_cpu_ms", ".1f"), pair("all_cpu_ms", ".1f")]
        cells += [pair("front_mb", ".0f"), pair("behind_mb", ".0f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def liars_markdown(found: Mapping[str, Any]) -> str:
    """A row for each lie, and what the test costs honest devices."""
    lines = [
        "| lie | liars | dead | without the test | with the test | largest loss | quarantine after |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["lies"]:
        shown = (f"{100 * row[key]:.1f} %" for key in ("dead", "unscreened", "screened"))
        after = "–" if row["first_quarantine"] is None else f"{row['first_quarantine']:.0f} requests"
        lines.append(f"| `{row['lie']}` | {row['liars']} | {' | '.join(shown)} | {100 * row['worst']:.2f} | {after} |")
    honest, next_to_liars = found["honest"], sum(row["honest_excluded"] for row in found["lies"])
    return "\n".join(
        [
            *lines,
            "",
            f"Without a lie, {honest['excluded']} of {honest['requests']:,} requests lost a device, and there were "
            f"{honest['quarantines']} quarantines; next to liars, {next_to_liars} requests lost an honest device. The "
            f"distinct samples of the bundle support no rate below {honest['rate_bound']:.1e} (95 % confidence).",
        ]
    )


def pi_markdown(found: Mapping[str, Any]) -> str:
    """A row for each step of the fleet of containers."""
    killed, ended, again = found["playbook"]
    faults, fleet = found["faults"], found["fleet"]
    rows = [
        (
            "playbook, pip killed on a node while it installs",
            f"{killed['seconds']:.0f} s, {', '.join(killed['failed'])} fails",
        ),
        ("playbook again", f"{ended['seconds']:.0f} s, {ended['changed']} tasks change something, none fails"),
        ("playbook a third time", f"{again['seconds']:.0f} s, {again['changed']} tasks change something"),
        ("SIGKILL of a node", f"in answers again after {faults['kill']['back_s']:.0f} s"),
        ("SIGSTOP of a node, ended by the watchdog", f"in answers again after {faults['stop']['back_s']:.0f} s"),
        ("reboot of a node", f"in answers again after {faults['reboot']['back_s']:.0f} s"),
        ("`nonn fleet push` of another bundle", f"{fleet['push_s']:.0f} s"),
        ("`nonn fleet drain` and `--undo`", f"{fleet['drain_s']:.0f} s"),
        ("`nonn fleet rollback`", f"{fleet['rollback_s']:.0f} s"),
        ("all requests meanwhile", f"{found['requests']:,}, {found['lost']} lost"),
    ]
    return "\n".join(["| step | measured |", "|---|---|", *(f"| {step} | {text} |" for step, text in rows)])
