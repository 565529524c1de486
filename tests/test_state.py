"""The state of a cluster as a document: what it holds, and what reads it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from nonn.aggregator.inventory import Node
from nonn.aggregator.monitoring.drift import DriftConfig
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.monitoring.state import ClusterState
from nonn.aggregator.service import Aggregator
from nonn.cli.top import _view
from nonn.documents import from_json, schema, to_json
from nonn.errors import DataError
from tests.toys import toy_bundle

KEYS = {
    "": "schema experiment bundle version time uptime_s ready quorum devices students_up accuracy nodes requests drift "
    "faults",
    "accuracy": "now all teacher next_worst next_worst_node next_mean interval next_worst_interval samples "
    "next_mean_interval",
    "requests": "total by_outcome per_second latency_p50_s latency_p99_s seconds",
    "drift": "watching reason alarms",
}
NODE_KEYS = (
    "id address student part state asked answered answered_share late latency_p50_s latency_p99_s version rss_bytes "
    "value drift heard_s"
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As /api/state, of two nodes that were never asked."""
    bundle = toy_bundle(tmp_path_factory.mktemp("state") / "bundle", num_devices=2)
    nodes = [Node(id=f"node-{i}", address=f"127.0.0.1:{i + 1}", student=i) for i in range(2)]
    monitor = Monitor(bundle, DriftConfig())
    monitor.attach(Aggregator(bundle, nodes))
    result: dict[str, Any] = json.loads(json.dumps(to_json(monitor.state())))
    return result


def test_dashboard_and_programs_find_the_keys_they_know_in_their_order(shown: dict[str, Any]) -> None:
    for section, keys in KEYS.items():
        assert list(shown[section] if section else shown) == keys.split()
    assert [list(node) for node in shown["nodes"]] == [NODE_KEYS.split()] * 2
    assert list(shown["nodes"][0]["drift"]) == ["watched", "alarm", "agreement", "expected", "samples"]


def test_what_was_read_is_written_again(shown: dict[str, Any]) -> None:
    assert to_json(from_json(ClusterState, shown, "state")) == shown


def test_a_state_of_a_newer_aggregator_is_read_and_a_malformed_one_names_its_field(shown: dict[str, Any]) -> None:
    assert from_json(ClusterState, {**shown, "invented": 1}, "state") == from_json(ClusterState, shown, "state")
    broken = {**shown, "nodes": [shown["nodes"][0], {**shown["nodes"][1], "part": "left"}]}
    with pytest.raises(DataError, match=r"state: nodes\[1\]\.part = 'left': must be a whole number"):
        from_json(ClusterState, broken, "state")


def test_every_field_is_described() -> None:
    assert schema(ClusterState)["properties"]["accuracy"] == {
        "$ref": "#/$defs/AccuracyNow",
        "description": "expected accuracy of the nodes that are up.",
    }


def test_a_node_id_is_no_markup_in_nonn_top(shown: dict[str, Any]) -> None:
    nodes = [{**shown["nodes"][0], "id": "a[/]", "address": "[red]h:1"}]
    screen = io.StringIO()
    Console(file=screen, width=140).print(
        _view(from_json(ClusterState, {**shown, "nodes": nodes}, "state"), "h:1", 140)
    )
    assert "a[/]" in screen.getvalue()
    assert "[red]h:1" in screen.getvalue()
