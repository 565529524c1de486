"""Puts the tables of results into the README and the documents, from the files that the commands wrote.

    python scripts/tables.py            # writes them
    python scripts/tables.py --check    # writes nothing, ends with 1 if it would change one

A table stands between ``<!-- KIND FILE … -->`` and ``<!-- end -->``:

============  ===========================================================================
kind          made of
============  ===========================================================================
study         ``study.json`` of ``nonn study``: the head a method serves, and the same for all
study-heads   the same file: every head on the same students
partitioners  ``compare.json`` of ``nonn partition --compare``
report        ``report.json`` of ``nonn demo``: its tables
results       several files of that kind: a line each
============  ===========================================================================
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nonn.files import atomic_file
from nonn.report.comparison import comparison_markdown
from nonn.report.study import heads_markdown, short_markdown
from nonn.report.table import as_markdown, failure_table, headline, live_table

ROOT = Path(__file__).resolve().parent.parent


def report_markdown(report: Mapping[str, Any]) -> str:
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


def results_markdown(*reports: Mapping[str, Any]) -> str:
    """A line for each report: the teacher, and accuracy with none, half and all but one of the devices failed."""
    lines = [
        "| data | teacher | students | none failed | half failed, mean | worst | all but one failed |",
        "| :--- | ---: | :--- | ---: | ---: | ---: | ---: |",
    ]
    for report in reports:
        rows, devices = report["accuracy_by_failures"], report["devices"]
        shown = [rows[0]["mean"], rows[len(rows) // 2]["mean"], rows[len(rows) // 2]["worst"], rows[-1]["mean"]]
        students = f"{len(devices)} × {max(device['params'] for device in devices):,} parameters"
        cells = [report["data"]["name"], f"{report['teacher']['accuracy']:.1%}", students, *(f"{a:.1%}" for a in shown)]
        lines.append("| " + " | ".join(cell.replace("%", " %") for cell in cells) + " |")
    return "\n".join(lines)


KINDS: Mapping[str, Callable[..., str]] = {
    "study": short_markdown,
    "study-heads": heads_markdown,
    "partitioners": comparison_markdown,
    "report": report_markdown,
    "results": results_markdown,
}
_TABLE = re.compile(rf"(<!-- ({'|'.join(KINDS)})((?: [^\s>]+)+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Writes or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    changed = 0
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = document.read_text()
        wanted = with_tables(text)
        changed += wanted != text
        if wanted != text and not args.check:
            with atomic_file(document) as file:
                file.write_text(wanted)
    return int(args.check and changed > 0)


def with_tables(text: str) -> str:
    """The text with every table made anew.

    Raises:
        OSError: a file that it names is not there.
    """

    def made(match: re.Match[str]) -> str:
        documents = [json.loads((ROOT / file).read_text()) for file in match[3].split()]
        return f"{match[1]}{KINDS[match[2]](*documents)}\n{match[4]}"

    return _TABLE.sub(made, text)


if __name__ == "__main__":
    sys.exit(main())
