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
methods       results of ``benchmarks/methods.py``: each method alone, and the best together
modnn         ``modnn.json`` of ``benchmarks/modnn.py``: layers over nodes next to fused students
lease         results of ``benchmarks/lease.py``: its pilots and rows
liars         the output of ``nonn-sim liars BUNDLE --json``
serving       ``bench.json`` of ``make bench``: what an answer costs, next to its targets
training      the same file: what two busy processes cost training
scaling       ``scaling.json`` of ``make bench``: what it costs with more nodes
sensing       results of ``examples/sensing/demo.py``, fast and at the speed of life
cameras       result of the same with a bundle of cameras
worn          results of ``benchmarks/worn.py``: units that are worn wrongly
soak          ``soak.json`` of ``make soak``: the adversaries, and what they cost
aggregators   the same file: time to the next answer when an aggregator fails
costs         ``costs.json`` of ``benchmarks.costs``: what each student costs in each runtime
estimates     the same file: times on boards that were not measured
energies      the same file: energy of an answer on those whose power is known
int8          results of ``benchmarks/int8.py``: the same students in float and in 8 bits
arm           ``arm.json`` of ``make arm``: features of students on Arm compared with those of this machine
mcu           ``mcu.json`` of ``make mcu``: flash, RAM and instructions of the students in 8 bits
projects      the same file: the projects for boards that were built with an SDK
pi            ``pi.json`` of ``make pi``: installation, faults and updates
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
from nonn.partition.compare import PartitionComparison
from nonn.report.comparison import comparison_markdown
from nonn.report.document import Report
from nonn.report.study import heads_markdown, short_markdown
from nonn.report.study_document import Study
from scripts.result_tables.accuracy import lease_markdown, report_markdown, results_markdown
from scripts.result_tables.costs import costs_markdown, energies_markdown, estimates_markdown, int8_markdown
from scripts.result_tables.fields import fields_markdown
from scripts.result_tables.methods import methods_markdown, modnn_markdown
from scripts.result_tables.processors import arm_markdown, mcu_markdown, projects_markdown
from scripts.result_tables.sensing import cameras_markdown, sensing_markdown, worn_markdown
from scripts.result_tables.serving import liars_markdown, pi_markdown, scaling_markdown
from scripts.result_tables.soak import aggregators_markdown, soak_markdown
from scripts.result_tables.targets import serving_markdown, training_markdown

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "nonn" / "report" / "report.schema.json"


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


# For each kind of table: the class of its documents, None for any JSON, and the function that writes it.
KINDS: Mapping[str, tuple[type[Any] | None, Callable[..., str]]] = {
    "study": (Study, short_markdown),
    "study-heads": (Study, heads_markdown),
    "partitioners": (PartitionComparison, comparison_markdown),
    "report": (Report, report_markdown),
    "results": (Report, results_markdown),
    "methods": (None, methods_markdown),
    "modnn": (None, modnn_markdown),
    "lease": (None, lease_markdown),
    "liars": (None, liars_markdown),
    "serving": (None, serving_markdown),
    "training": (None, training_markdown),
    "scaling": (None, scaling_markdown),
    "sensing": (None, sensing_markdown),
    "cameras": (None, cameras_markdown),
    "soak": (None, soak_markdown),
    "aggregators": (None, aggregators_markdown),
    "costs": (None, costs_markdown),
    "estimates": (None, estimates_markdown),
    "energies": (None, energies_markdown),
    "int8": (None, int8_markdown),
    "arm": (None, arm_markdown),
    "mcu": (None, mcu_markdown),
    "projects": (None, projects_markdown),
    "pi": (None, pi_markdown),
    "fields": (None, fields_markdown),
    "worn": (None, worn_markdown),
}
_TABLE = re.compile(rf"(<!-- ({'|'.join(KINDS)})((?: [^\s>]+)+) -->\n).*?(<!-- end -->)", re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
