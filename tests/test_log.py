"""Logs of real processes: one line an event, text or JSON, never twice."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.inventory import Node, write_inventory
from nonn.answer import Answer
from nonn.client import Client
from nonn.documents.shown import html_table
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import sensing_pb2
from nonn.streams import WindowAnswer
from nonn.telemetry.log import configure_logging
from nonn.telemetry.printable import printable
from tests.serving import TIMEOUT_S, fake_node, process
from tests.toys import toy_bundle


@pytest.fixture
def root() -> Iterator[Any]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_line_of_json_has_the_fields_of_its_event_and_is_written_once(
    root: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        configure_logging("json")
    logging.getLogger("nonn.x").warning("ä %s", "b", extra={"event": "e", "node": "n-1", "reason": "r"})
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("nonn.y").exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning",
        "logger": "nonn.x",
        "message": "ä b",
        "event": "e",
        "node": "n-1",
        "reason": "r",
    }
    assert "ValueError: boom" in second["exception"]


def test_text_is_one_line_too(root: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    configure_logging("text")
    logging.getLogger("nonn.x").info("hello")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("INFO hello")


def test_an_aggregator_logs_one_line_for_each_change_of_a_node(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=2)
    inventory = tmp_path / "nodes.toml"
    write_inventory(inventory, [Node(id="kitchen", address="127.0.0.1:9", student=0)])
    arguments: list[str | Path] = ["serve", bundle.path, "--inventory", inventory, "--deadline", "0.1"]
    with process("nonn", *arguments, "--watch-stdin", "--log-format", "json") as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["event"] == "ready"
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, out) == (0, b"")
    lines = [json.loads(line) for line in err.splitlines()]
    changes = [line for line in lines if line.get("event") == "node_state"]
    assert changes[0]["node"] == "kitchen"
    assert (changes[0]["before"], changes[0]["after"]) == ("unknown", "suspect")
    assert changes[0]["reason"]
    assert len({(line["node"], line["before"], line["after"]) for line in changes}) == len(changes)


NASTY = "x\n2026-01-01 INFO all is well \x1b[31m\x9b1m\u202e" + 20_000 * "y"


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_other_machines_send_is_one_line_without_control_characters(
    root: Any, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    configure_logging(style)
    logging.getLogger("nonn.x").warning("node %s", NASTY, extra={"event": "e", "node": NASTY, "reason": NASTY})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert len(line) < 15_000
    assert "…" in line


def test_what_an_aggregator_says_about_itself_has_no_control_characters() -> None:
    async def behaviour(raw: Any, context: Any) -> Any:
        metadata = pb.ModelMetadataResponse(name="nonn")
        metadata.inputs.add(name="input", datatype="UINT8", shape=[-1, 1])
        metadata.outputs.add(name="answered", datatype="BOOL", shape=[-1, 1])
        said = {"classes": [NASTY], "nodes": [{"id": NASTY}], "state": {NASTY: [1.5, None, {"reason": NASTY}]}}
        metadata.properties.update({f"nonn_{key}": json.dumps(value) for key, value in said.items()})
        metadata.properties["nonn_quorum"] = "1"
        return metadata.SerializeToString()

    async def scenario() -> Any:
        async with fake_node(behaviour) as address:
            with Client(address) as client:
                return await asyncio.to_thread(client.metadata)

    metadata = asyncio.run(scenario())
    text = printable(NASTY, len(NASTY))
    assert text.isprintable()
    assert (metadata.classes, metadata.nodes) == ((text,), ({"id": text},))
    assert metadata.state == {text: [1.5, None, {"reason": text}]}


def test_what_an_answer_says_has_no_control_characters() -> None:
    text = printable(NASTY)
    tensors = {"logits": np.zeros((1, 2)), "confidence": np.zeros(1), "answered": np.ones((1, 2), np.bool_)}
    parameters: dict[str, Any] = {"nonn_degraded": True, "nonn_plan": "b", "nonn_expected_accuracy": 0.5}
    answer = Answer.read(tensors, {**parameters, "nonn_failures": json.dumps({NASTY: NASTY})}, 0.0)
    assert answer.failures == {text: text}
    window = WindowAnswer.from_message(
        sensing_pb2.WindowAnswer(label=NASTY, missing={NASTY: NASTY}, smoothed=sensing_pb2.Smoothed(label=NASTY))
    )
    assert window.smoothed is not None
    assert (window.label, window.smoothed.label, window.missing) == (text, text, {text: text})


def test_a_table_for_a_notebook_has_texts_and_no_markup() -> None:
    table = html_table(["<b>"], [["<script>&"]], "<i>")
    assert re.findall(r"&lt;\w+&gt;(?:&amp;)?", table) == ["&lt;i&gt;", "&lt;b&gt;", "&lt;script&gt;&amp;"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_has_its_lines_and_no_other_control_characters(
    root: Any, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    configure_logging(style)
    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("nonn.y").exception("failed")
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.replace("\n", "").isprintable()


@given(st.text())
def test_printable_text_is_one_line_and_says_what_it_escapes(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert not shown.splitlines()[1:]
    assert printable(shown, 10_000) == shown
    if text.isprintable() and len(text) <= 300:
        assert shown == text


def test_escapes_are_those_of_string_literals() -> None:
    assert printable("a\n\x1b[2J\u202e") == r"a\n\x1b[2J\u202e"
    assert printable("abcdef", 4) == "abc…"
    assert printable("a\nb", keep="\n") == "a\nb"
