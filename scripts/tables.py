"""Writes the tables of results and fields in the README and the documents, and the JSON Schema of report.json.

    python scripts/tables.py            # writes them
    python scripts/tables.py --check    # writes nothing, exits with 1 if a table would change

A table is between ``<!-- KIND FILE … -->`` and ``<!-- end -->``:

============  ===========================================================================
kind          source
============  ===========================================================================
study         ``study.json`` of ``nonn study``: the head a method serves, and the same for all
study-heads   the same file: every head on the same students
partitioners  ``compare.json`` of ``nonn partition --compare``
report        ``report.json`` of ``nonn demo``: its tables
results       several such files: one line each
lease         results of ``benchmarks/lease.py``: its pilots and rows
liars         the output of ``nonn-sim liars BUNDLE --json``
fields        the JSON Schema of a document: every field of it
============  ===========================================================================

The schema is generated from the dataclasses of ``nonn.report.document`` and their docstrings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nonn.documents import read, schema
from nonn.files import atomic_file
from nonn.partition.compare import Comparison
from nonn.report.comparison import comparison_markdown
from nonn.report.document import Report
from nonn.report.study import heads_markdown, short_markdown
from nonn.report.study_document import Study
from nonn.report.table import as_markdown, failure_table, headline, live_table

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "nonn" / "report" / "report.schema.json"
_NAMES = {"integer": "whole number", "null": "null"}


def main() -> int:
    """Writes or compares all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    changed = _put(SCHEMA, json.dumps(schema(Report), indent=2, ensure_ascii=False) + "\n", check=args.check)
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        changed |= _put(document, with_tables(document.read_text()), check=args.check)
    return int(args.check and changed)


def _put(path: Path, wanted: str, *, check: bool) -> bool:
    """Whether a file differs from its expected content; it is written unless this is a check."""
    if path.exists() and path.read_text() == wanted:
        return False
    if not check:
        with atomic_file(path) as file:
            file.write_text(wanted)
    return True


def with_tables(text: str) -> str:
    """The text with every table generated again.

    Raises:
        OSError: a file that it names is missing.
    """

    def made(match: re.Match[str]) -> str:
        cls, to_markdown = KINDS[match[2]]
        paths = [ROOT / file for file in match[3].split()]
        documents = [read(cls, path) if cls else json.loads(path.read_text()) for path in paths]
        return f"{match[1]}{to_markdown(*documents)}\n{match[4]}"

    return _TABLE.sub(made, text)


def report_markdown(report: Report) -> str:
    """The tables that ``nonn demo`` prints: every number of failures, and what the live cluster measured."""
    return "\n\n".join(
        [
            f"{headline(report)}.",
            "Over all subsets of surviving devices:",
            as_markdown(failure_table(report)),
            "Measured on live processes:",
            as_markdown(live_table(report)),
        ]
    )


def results_markdown(*reports: Report) -> str:
    """One line per report: the teacher, and accuracy with none, half and all but one of the devices failed."""
    lines = [
        "| data | teacher | students | none failed | half failed, mean | worst | all but one failed |",
        "| :--- | ---: | :--- | ---: | ---: | ---: | ---: |",
    ]
    for report in reports:
        rows = report.accuracy_by_failures
        half = rows[len(rows) // 2]
        students = f"{len(report.devices)} × {max(device.params for device in report.devices):,} parameters"
        shown = [report.teacher.accuracy, students, rows[0].mean, half.mean, half.worst, rows[-1].mean]
        cells = [report.data.name, *(a if isinstance(a, str) else f"{a:.1%}" for a in shown)]
        lines.append("| " + " | ".join(cell.replace("%", " %") for cell in cells) + " |")
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
    honest, beside = found["honest"], sum(row["honest_excluded"] for row in found["lies"])
    return "\n".join(
        [
            *lines,
            "",
            f"Without a lie, {honest['excluded']} of {honest['requests']:,} requests lost a device, and there were "
            f"{honest['quarantines']} quarantines; next to liars, {beside} requests lost an honest device. The "
            f"distinct samples of the bundle support no rate below {honest['rate_bound']:.1e} (95 % confidence).",
        ]
    )


def lease_markdown(found: Mapping[str, Any]) -> str:
    """Accuracy of each pilot and each row on the held-out split, over all subsets, by the number of failures."""
    first = next(iter(found["stays"][0]["pilots"].values()))
    lines = [
        "| students | training images | epochs | " + " | ".join(f"{n} failed" for n in range(len(first))) + " |",
        "| :--- | ---: | ---: |" + " ---: |" * len(first),
    ]
    for stay in found["stays"]:
        pilots = {f"pilot `{name}`": (found["pilot_epochs"], levels) for name, levels in stay["pilots"].items()}
        rows = {f"`{name}`": (row["epochs"], row["held_out_by_failures"]) for name, row in stay["rows"].items()}
        for title, (epochs, levels) in (pilots | rows).items():
            shown = " | ".join(f"{100 * level:.1f} %" for level in levels)
            lines.append(f"| {title} | {stay['train']:,} | {epochs} | {shown} |")
    return "\n".join(lines)


def fields_markdown(described: Mapping[str, Any]) -> str:
    """Every field of a document and of its nested classes: a heading and a table for each class."""
    blocks = [_fields_table(described)]
    for name, inner in described["$defs"].items():
        blocks.append(f"### {name}\n\n{inner['description']}\n\n{_fields_table(inner)}")
    return "\n\n".join(blocks)


def _fields_table(described: Mapping[str, Any]) -> str:
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for key, value in described["properties"].items():
        may_be_absent = "" if key in described["required"] else "; may be absent"
        text = f"{value['description'].rstrip('.')}".replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(value)}{may_be_absent} | {text} |")
    return "\n".join(lines)


def _type(value: Mapping[str, Any]) -> str:
    """A type in words, with its limits and a link to its own table."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(map(_type, value["anyOf"]))
    if "items" in value:
        return f"list of {_type(value['items'])}"
    name = _NAMES.get(value.get("type", ""), value.get("type", "any value"))
    if "maximum" in value:
        return f"{name} from {value['minimum']} to {value['maximum']}"
    return f"{name} ≥ {value['minimum']}" if "minimum" in value else name


# For each kind of table: the class of its documents, None for any JSON, and the function that writes it.
KINDS: Mapping[str, tuple[type[Any] | None, Callable[..., str]]] = {
    "study": (Study, short_markdown),
    "study-heads": (Study, heads_markdown),
    "partitioners": (Comparison, comparison_markdown),
    "report": (Report, report_markdown),
    "results": (Report, results_markdown),
    "lease": (None, lease_markdown),
    "liars": (None, liars_markdown),
    "fields": (None, fields_markdown),
}
_TABLE = re.compile(rf"(<!-- ({'|'.join(KINDS)})((?: [^\s>]+)+) -->\n).*?(<!-- end -->)", re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
