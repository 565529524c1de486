"""Draws the figures of the README, for light and for dark pages, and of docs/load.md from shipped results.

    python scripts/figures.py           # writes them to docs/images
    python scripts/figures.py --check   # writes nothing, exits with 1 if a figure is older than its results

Each figure contains a hash of its numbers. ``--check`` compares that hash, not the drawing, which differs
between versions of matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonn.files import atomic_file
from nonn.report.drawing import BLUE, GREEN, GRID, INK, SKY, on_white, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
REPORTS = {
    "digits": ROOT / "benchmarks" / "results" / "digits.json",
    "CIFAR-100, 0.2 M parameters": ROOT / "examples" / "bundles" / "cifar100.json",
    "CIFAR-100, 0.7 M parameters": ROOT / "examples" / "bundles" / "cifar100-large.json",
}
SCALING = ROOT / "benchmarks" / "results" / "scaling.json"
LIGHT_INK = "#e6e9ee"  # on GitHub's dark page


def main() -> int:
    """Writes or compares the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    reports = {title: json.loads(path.read_text()) for title, path in REPORTS.items()}
    rows = json.loads(SCALING.read_text())["rows"]
    numbers = digest(shown(reports))
    drawn: dict[str, tuple[str, Callable[[], str]]] = {
        "failures-light.svg": (numbers, lambda: figure(reports, dark=False)),
        "failures-dark.svg": (numbers, lambda: figure(reports, dark=True)),
        "scaling.svg": (digest(rows), lambda: scaling_figure(rows)),
    }
    IMAGES.mkdir(exist_ok=True)
    old = False
    for name, (numbers, draw) in drawn.items():
        path, stamp = IMAGES / name, f"<!-- numbers {numbers} -->"
        if args.check:
            old |= not path.is_file() or stamp not in path.read_text()
            continue
        with atomic_file(path) as file:
            file.write_text(f"{stamp}\n{draw()}")
    return int(old)


def shown(reports: Mapping[str, Any]) -> list[Any]:
    """All numbers of the figure of failures."""
    return [(title, r["teacher"]["accuracy"], r["accuracy_by_failures"]) for title, r in reports.items()]


def digest(numbers: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all numbers in a figure."""
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]


def figure(reports: Mapping[str, Any], *, dark: bool) -> str:
    """Accuracy against failed devices, one panel per report: mean, worst to best subset, the teacher."""
    panels = list(reports.items())

    def draw(axes: Axes) -> None:
        whole = axes.figure
        axes.remove()
        for number, (title, report) in enumerate(panels, 1):
            _panel(whole.add_subplot(1, len(panels), number), title, report, first=number == 1)

    text = svg("failures", "Accuracy against failed devices", (11.0, 3.4), draw)
    return text.replace(INK, LIGHT_INK).replace(BLUE, SKY) if dark else text


def scaling_figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Cost of an answer against the number of nodes, nonn and the bare fan-out: a panel for each quantity."""
    quantities = {
        "p50, ms": "p50_ms",
        "answers a second, 64 clients": "per_s",
        "processor time of all, ms an answer": "all_cpu_ms",
        "memory of the aggregator, MB": "front_mb",
    }
    nodes = [row["nodes"] for row in rows]

    def draw(axes: Axes) -> None:
        whole = axes.figure
        axes.remove()
        for number, (title, key) in enumerate(quantities.items(), 1):
            panel = whole.add_subplot(1, len(quantities), number)
            for name, colour in (("nonn", BLUE), ("floor", GREEN)):
                label = "nonn" if name == "nonn" else "bare fan-out"
                values = [row[f"{name}_{key}"] for row in rows]
                panel.plot(nodes, values, "o-", color=colour, linewidth=2.2, markersize=6, label=label)
            panel.set_xscale("log", base=2)
            panel.set_xticks(nodes, map(str, nodes))
            panel.set_ylim(bottom=0)
            panel.set_xlabel("nodes")
            panel.set_title(title, loc="left", fontsize=11.5)
            panel.grid(axis="y", **GRID)
            if number == 1:
                panel.legend(frameon=False)

    return on_white(svg("scaling", "Cost of an answer against the number of nodes", (13.0, 3.2), draw))


def _panel(axes: Axes, title: str, report: Mapping[str, Any], *, first: bool) -> None:
    rows = report["accuracy_by_failures"]
    failed = [row["failed"] for row in rows]
    mean, worst, best = ([100 * row[key] for row in rows] for key in ("mean", "worst", "best"))
    teacher = 100 * report["teacher"]["accuracy"]
    axes.fill_between(failed, worst, best, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(failed, mean, "o-", color=BLUE, linewidth=2.2, markersize=6)
    axes.axhline(teacher, color=GREEN, linewidth=1.8, linestyle=(0, (6, 3)))
    low, high = min([*worst, teacher]), max([*best, teacher])
    room = 0.14 * (high - low)
    axes.annotate(f"teacher, {teacher:.1f} %", (failed[0], teacher), (0, -15), textcoords="offset points", color=GREEN)
    axes.text(0.02, 0.05, "mean and range\nof all subsets", transform=axes.transAxes, color=BLUE)
    axes.set_ylim(low - room, high + room)
    axes.set_xticks(failed)
    axes.set_xlabel(f"devices failed, of {len(rows)}")
    if first:
        axes.set_ylabel("accuracy, %")
    axes.set_title(title, loc="left", fontsize=11.5)
    axes.grid(axis="y", **GRID)


if __name__ == "__main__":
    sys.exit(main())
