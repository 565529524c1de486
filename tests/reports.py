"""Checks a report.json against its JSON Schema and its reader."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from nonn.documents import from_json, to_json
from nonn.report.document import Report

SCHEMA = Path(__file__).parent.parent / "nonn" / "report" / "report.schema.json"


def check_report(file: Path) -> Report:
    """The report; an error unless it keeps to the schema and is written again as the same text."""
    document = json.loads(file.read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    report = from_json(Report, document, str(file))
    assert json.dumps(to_json(report)) == json.dumps(document)
    return report
