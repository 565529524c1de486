"""The JSON Schema of report.json: made of the dataclasses, and kept by every report.

Reports with live measurements, 8 bits, device classes, views and guarantees are checked where those are made:
``check_report`` in the tests of demo, quantisation, devices, wearables and pipeline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nonn.documents import from_json, schema, to_json, write
from nonn.errors import DataError
from nonn.report import build_report
from nonn.report.document import Report
from tests.reports import SCHEMA, check_report
from tests.toys import toy_bundle

SHIPPED = sorted((Path(__file__).parent.parent / "examples" / "bundles").glob("*.json"))


def test_the_shipped_schema_is_the_one_of_the_dataclasses() -> None:
    found = json.loads(SCHEMA.read_text())
    assert found == schema(Report), "run: python scripts/tables.py"
    jsonschema.Draft202012Validator.check_schema(found)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_report_keeps_to_it(file: Path) -> None:
    report = check_report(file)
    assert file.read_text() == json.dumps(to_json(report), indent=2, ensure_ascii=False) + "\n"


def test_there_is_a_shipped_report() -> None:
    assert SHIPPED


def test_a_report_of_several_bundles_with_live_rows_keeps_to_it(tmp_path: Path) -> None:
    bundle, other = toy_bundle(tmp_path / "one", num_devices=3), toy_bundle(tmp_path / "two", num_devices=1)
    live = {"answered": [2, 0], "accuracy": 0.5, "requests": 9, "lost": 1, "mismatched": 2, "seconds": 1.5}
    write(tmp_path / "report.json", build_report(bundle, [live], [other]))
    report = check_report(tmp_path / "report.json")
    assert len(report.methods) == 2
    assert (report.measured_live[0].mismatched, report.measured_live[0].more) == (2, {"seconds": 1.5})
    assert report.by_class is not None


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("teacher", {"accuracy": 98.0}, r"report\.json: teacher\.accuracy = 98\.0: must be a number from 0 to 1"),
        ("data", {"samples": "many"}, r"report\.json: data\.samples = 'many': must be a whole number"),
        ("traffic", {"layer_maps": 0.5}, r"traffic\.layer_maps = 0\.5: must be a whole number or null"),
        ("expected_accuracy", {"p_fail": [0.1, 2]}, r"expected_accuracy\.p_fail\[1\] = 2: must be"),
    ],
)
def test_schema_and_reader_refuse_the_same_malformed_report(section: str, change: dict[str, Any], message: str) -> None:
    document = json.loads(SHIPPED[0].read_text())
    document[section] |= change
    assert not jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).is_valid(document)
    with pytest.raises(DataError, match=message):
        from_json(Report, document, "report.json")
