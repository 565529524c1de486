"""Draws the README's figure from the reports of shipped results, for light and for dark pages.

    python scripts/figures.py           # writes docs/images/failures-light.svg and failures-dark.svg
    python scripts/figures.py --check   # writes nothing, exits with 1 if a figure is older than its reports

Each figure contains a hash of its numbers. ``--check`` compares that hash, not the drawing, which differs
between versions of matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonn.files import atomic_file
from nonn.report.plots import BLUE, GREEN, GRID, INK, SKY, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
REPORTS = {
    "digits": ROOT / "benchmarks" / "results" / "digits.json",
    "CIFAR-100, 0.2 M parameters": ROOT / "examples" / "bundles" / "cifar100.json",
    "CIFAR-100, 0.7 M parameters": ROOT / "examples" / "bundles" / "cifar100-large.json",
}
LIGHT_INK = "#e6e9ee"  # on GitHub's dark page


def main() -> int:
    """Writes or compares the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    reports = {title: json.loads(path.read_text()) for title, path in REPORTS.items()}
    stamp = f"<!-- numbers {digest(reports)} -->"
    files = {IMAGES / "failures-light.svg": False, IMAGES / "failures-dark.svg": True}
    if args.check:
        return int(any(not path.is_file() or stamp not in path.read_text() for path in files))
    IMAGES.mkdir(exist_ok=True)
    for path, dark in files.items():
        with atomic_file(path) as file:
            file.write_text(f"{stamp}\n{figure(reports, dark=dark)}")
    return 0


def digest(reports: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all numbers in the figure."""
    shown = [(title, r["teacher"]["accuracy"], r["accuracy_by_failures"]) for title, r in reports.items()]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


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
