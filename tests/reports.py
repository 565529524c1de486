"""What tests of the report share: its schema, a table by hand, a bundle with other contents, a page that is read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.bundle import Bundle, write_bundle
from nonn.bundle.manifest import OUTCOMES
from nonn.documents import from_json, to_json
from nonn.report import html
from nonn.report.document import Report
from tests.toys import toy_bundle

SCHEMA = Path(__file__).parent.parent / "nonn" / "report" / "report.schema.json"
# Right answers of ten samples by mask: none, {0}, {1}, {0,1}, {2}, {0,2}, {1,2}, all.
CORRECT = [0, 5, 4, 7, 3, 6, 6, 9]
LIVE: list[dict[str, Any]] = [
    {"answered": [0, 1, 2], "accuracy": 0.9, "requests": 10, "lost": 0},
    {"answered": [2, 0], "accuracy": 0.5, "requests": 1234, "lost": 3, "seconds": 1.5},
]


@contextlib.contextmanager
def without_pages() -> Iterator[None]:
    """Reports that are written in the block have no page: its figures take most of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_page", lambda *_: None)
        yield


def check_report(file: Path) -> Report:
    """The report; an error unless it keeps to the schema and is written again as the same text."""
    document = json.loads(file.read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    report = from_json(Report, document, str(file))
    assert json.dumps(to_json(report)) == json.dumps(document)
    return report


def rewritten(
    bundle: Bundle, path: Path, arrays: Mapping[str, Mapping[str, NDArray[Any]]] | None = None, **changes: Any
) -> Bundle:
    """The bundle with other values in its manifest, and further or other arrays."""
    # Outcomes belong to their counts: a bundle with other counts has none, as one of an older version.
    lost = {OUTCOMES} if "accuracy.npz" in (arrays or {}) else set()
    kept = {name: bundle.arrays(name) for name in bundle.manifest.files.keys() - lost}
    manifest = dataclasses.replace(bundle.manifest, **changes)
    students = {s.device: bundle.student_path(s.device % bundle.num_devices).read_bytes() for s in manifest.students}
    return write_bundle(path, manifest, students, {**kept, **(arrays or {})})


def by_hand(folder: Path) -> Bundle:
    """Three devices whose table was written by hand, failing with probability ½."""
    weights = np.random.default_rng(0).random((14, 14)).astype(np.float32)
    graph = weights + weights.T - 2 * np.diag(weights.diagonal())
    table = {"correct": np.array(CORRECT), "samples": np.array(10)}
    return rewritten(
        toy_bundle(folder / "toy", num_devices=3),
        folder / "bundle",
        {"accuracy.npz": table, "graph.npz": {"weights": graph}},
        provenance={
            "code_version": "1.2.3",
            "config": {"devices": {"count": 3, "p_fail": 0.5}},
            "partition": {"sizes": [4, 4, 4], "num_dropped": 2, "balance": 1.0, "normalised_cut": 2.0625},
        },
    )


class Page(HTMLParser):
    """Reads a page: its tags, what it loads, and each table's cells as value of <data> and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.tables: dict[str, list[list[tuple[float | None, str]]]] = {}
        self._rows: list[list[tuple[float | None, str]]] = []
        self._cell: str | None = None
        self._value: float | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.loads += [values[key] for key in ("src", "href", "xlink:href", "action") if key in values]
        if tag == "table":
            self._rows = self.tables.setdefault(values["id"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag == "td":
            self._cell, self._value = "", None
        elif tag == "small" and self._cell is not None:  # an interval shares the cell of its value
            self.handle_endtag("td")
            self._cell, self._value = "", None
        elif tag == "data":
            self._value = float(values["value"])

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "td" and self._cell is not None:
            self._rows[-1].append((self._value, self._cell.strip().replace("\xa0", " ")))
            self._cell = None
