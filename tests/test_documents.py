"""Documents as dataclasses: what is written, what is read, what is refused, and the schema of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest

from nonn.documents import OPTIONAL, REST, Between, Share, Whole, from_json, read, schema, to_json, write
from nonn.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reading.

    Attributes:
        class_: what was seen, in a text
            of two lines.
        share: how surely.
        limits: one, or several.
        note: by hand.
        more: whatever else is known.
    """

    class_: str
    share: Share
    limits: float | tuple[Share, ...] = 0.5
    note: str | None = field(default=None, metadata=OPTIONAL)
    more: Mapping[str, object] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True, kw_only=True)
class Log:
    """A log.

    Not part of its description.

    Attributes:
        name: of the log.
        is_open: whether it grows.
        readings: in order.
        counts: by name.
        parent: the one before.
        settings: any.
        delay: of at least a second, seconds.
    """

    name: str
    is_open: bool = False
    readings: tuple[Reading, ...] = ()
    counts: Mapping[str, Whole] = field(default_factory=dict)
    parent: Reading | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    delay: Annotated[float, Between(1)] = 1.0


WHOLE: dict[str, Any] = {
    "name": "a",
    "is_open": True,
    "readings": [
        {"class": "x", "share": 1, "limits": [0.25, 1], "note": "n", "seen": [1, {"deep": None}]},
        {"class": "y", "share": 0.1, "limits": 7},
    ],
    "counts": {"late": 0},
    "parent": None,
    "settings": {"any": [1, "two", None]},
    "delay": 2.5,
}


def test_a_document_read_and_written_again_is_the_same_text() -> None:
    log = from_json(Log, WHOLE, "log")
    assert json.dumps(to_json(log)) == json.dumps(WHOLE)
    assert (log.readings[0].class_, log.readings[0].limits) == ("x", (0.25, 1))
    assert log.readings[0].more == {"seen": [1, {"deep": None}]}


def test_an_older_document_gets_defaults_and_unknown_keys_of_a_newer_one_are_ignored() -> None:
    assert from_json(Log, {"name": "a", "invented": {"later": 1}}, "log") == Log(name="a")
    assert to_json(Reading(class_="x", share=0.5)) == {"class": "x", "share": 0.5, "limits": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "log: name = 3: must be a string"),
        ({"is_open": 1}, "log: is_open = 1: must be a boolean"),
        ({"counts": {"late": True}}, r"log: counts\.late = True: must be a whole number"),
        ({"counts": {"late": -1}}, r"log: counts\.late = -1: must be a number of at least 0"),
        ({"counts": []}, r"log: counts = \[\]: must be an object"),
        ({"parent": "x"}, "log: parent = 'x': must be an object or null"),
        ({"readings": [{"class": "x"}]}, r"log: readings\[0\] lacks share"),
        (
            {"readings": [{"class": "x", "share": 1.5}]},
            r"log: readings\[0\]\.share = 1\.5: must be a number from 0 to 1",
        ),
        ({"readings": [{"class": "x", "share": float("nan")}]}, r"readings\[0\]\.share = nan: must be a number from"),
        ({"readings": [{"class": "x", "share": 1, "limits": "l"}]}, r"limits = 'l': must be a number or a list"),
        ({"readings": "y" * 100}, "log: readings = 'y{58}…: must be a list"),
        ({"delay": 0.5}, "log: delay = 0.5: must be a number of at least 1"),
    ],
)
def test_an_error_names_the_source_the_field_and_what_it_must_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}" if message.startswith("log") else message):
        from_json(Log, {**WHOLE, **change}, "log")


def test_what_is_no_document_at_all_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    for text, message in (("[1]", "must be an object"), ("{}", "lacks name"), ("{", "not a JSON document")):
        file.write_text(text)
        with pytest.raises(DataError, match=rf"log\.json.*{message}"):
            read(Log, file)
    file.write_bytes(b'"\xff"')
    with pytest.raises(DataError, match="not a JSON document"):
        read(Log, file)


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    log = from_json(Log, WHOLE, "log")
    write(tmp_path / "log.json", log)
    assert read(Log, tmp_path / "log.json") == log
    assert (tmp_path / "log.json").read_text() == json.dumps(WHOLE, indent=2) + "\n"


def test_the_schema_accepts_what_the_reader_accepts_and_refuses_what_it_refuses() -> None:
    found = schema(Log)
    jsonschema.Draft202012Validator.check_schema(found)
    validator = jsonschema.Draft202012Validator(found)
    assert validator.is_valid(WHOLE)
    assert validator.is_valid({"name": "a", "invented": 1})
    for change in (
        {"name": 3},
        {"is_open": 1},
        {"counts": {"late": -1}},
        {"parent": "x"},
        {"readings": [{"class": "x"}]},
        {"readings": [{"class": "x", "share": 1.5}]},
        {"readings": [{"class": "x", "share": 1, "limits": [2]}]},
        {"delay": 0.5},
    ):
        assert not validator.is_valid({**WHOLE, **change}), change
        with pytest.raises(DataError):
            from_json(Log, {**WHOLE, **change}, "log")


def test_the_schema_has_the_texts_of_the_docstrings() -> None:
    found = schema(Log)
    assert found["description"] == "A log."
    reading = found["$defs"]["Reading"]
    assert reading["properties"]["class"]["description"] == "what was seen, in a text of two lines."
    assert reading["required"] == ["class", "share"]
    assert "more" not in reading["properties"]
    assert found["properties"]["settings"] == {"type": "object", "description": "any."}


def test_a_field_without_a_text_or_of_no_json_type_has_no_schema() -> None:
    @dataclass(frozen=True)
    class Silent:
        """Says nothing."""

        name: str

    @dataclass(frozen=True)
    class Foreign:
        """One.

        Attributes:
            path: of a file.
        """

        path: Path

    with pytest.raises(TypeError, match="has no attribute name"):
        schema(Silent)
    with pytest.raises(TypeError, match="not a type of a JSON document"):
        schema(Foreign)
