"""Metrics, health and state of a real cluster over HTTP, while its nodes die."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.aggregator.events import LateEvent, RequestEvent, StateEvent
from nonn.aggregator.inventory import Node, write_inventory
from nonn.aggregator.monitoring.drift import DriftNotice
from nonn.aggregator.monitoring.metrics import CODES, Metrics, code_of
from nonn.aggregator.reply import Reply
from nonn.aggregator.service import Aggregator
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from nonn.cli import main
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import QuorumError
from nonn.security.authority import Authority
from tests.light import python
from tests.observing import fetch, metric, metrics, state
from tests.serving import TIMEOUT_S, logged, process, run_here, until
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 4
# As SERVING names them; a histogram and a counter have further suffixes.
NAMES = {
    "nonn_requests_total",
    "nonn_request_duration_seconds_count",
    "nonn_node_rpc_duration_seconds_count",
    "nonn_nodes_up",
    "nonn_students_up",
    "nonn_quarantined_nodes",
    "nonn_answered_nodes_count",
    "nonn_degraded_requests_total",
    "nonn_expected_accuracy",
    "nonn_late_replies_total",
    "nonn_early_fusions_total",
    "nonn_node_drift",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("metrics") / "bundle", num_devices=NUM_DEVICES, num_parts=2)


@pytest.fixture(scope="module")
def cluster(bundle: Bundle) -> Iterator[Any]:
    with LocalCluster(bundle.path, http_port=0, quorum=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Any]:
    with Client(cluster.address) as client:
        yield client


@pytest.fixture(scope="module")
def inputs() -> Any:
    return toy_data(50, seed=3)[0]


@pytest.fixture
def everybody(cluster: LocalCluster) -> Any:
    """The cluster with every node up, whatever the test before did to it."""
    for known in cluster.states():
        if known.state == "dead":
            cluster.restart(known.node)
    until(lambda: metric(cluster.http_address, "nonn_nodes_up") == NUM_DEVICES)
    return cluster


@pytest.fixture
def without_node_2(everybody: Any, client: Any, inputs: NDArray[Any]) -> Any:
    everybody.kill(2)
    until(lambda: client.infer(inputs[:1]).mask == 0b1011)
    until(lambda: metric(everybody.http_address, "nonn_nodes_up") == NUM_DEVICES - 1)
    return everybody


@pytest.fixture
def below_quorum(everybody: Any, client: Any, inputs: NDArray[Any]) -> Any:
    for node in range(NUM_DEVICES - 1):
        everybody.kill(node)

    def refused() -> Any:
        try:
            client.infer(inputs[:1])
        except QuorumError:
            return True
        return False

    until(refused)
    return everybody


def calls(http: Any, node: Any, code: Any) -> Any:
    """How often a node has answered so."""
    labels = {"node": f"node-{node}", "part": str(node % 2), "code": code}
    return metric(http, "nonn_node_rpc_duration_seconds_count", **labels) or 0


def test_a_request_is_counted_once_for_the_cluster_and_once_for_each_node(
    everybody: Any, client: Any, inputs: NDArray[Any]
) -> None:
    http = everybody.http_address

    def counted() -> Any:
        return [metric(http, "nonn_requests_total", model="nonn", outcome="ok") or 0] + [
            calls(http, node, "OK") for node in range(NUM_DEVICES)
        ]

    client.infer(inputs[:1])
    before = counted()
    for i in range(5):
        client.infer(inputs[i : i + 1])
    until(lambda: counted() == [count + 5 for count in before])


def test_metrics_of_a_whole_cluster_say_that_nothing_is_wrong(bundle: Bundle, everybody: Any) -> None:
    http = everybody.http_address
    assert metric(http, "nonn_expected_accuracy") == bundle.table.accuracy[0b1111]
    for node in range(NUM_DEVICES):
        assert metric(http, "nonn_node_drift", node=f"node-{node}") == 0
        assert metric(http, "nonn_late_replies_total", node=f"node-{node}") == 0


def test_the_state_of_a_whole_cluster_shows_nodes_accuracy_and_memory(
    bundle: Bundle, everybody: Any, client: Any, inputs: NDArray[Any]
) -> None:
    http, accuracy = everybody.http_address, bundle.table.accuracy
    client.infer(inputs[:1])
    until(lambda: [node["state"] for node in state(http)["nodes"]] == ["up"] * NUM_DEVICES)
    until(lambda: all(node["rss_bytes"] for node in state(http)["nodes"]))
    shown = state(http)
    assert [node["part"] for node in shown["nodes"]] == [0, 1, 0, 1]
    assert shown["accuracy"]["now"] == accuracy[0b1111]
    assert shown["accuracy"]["next_worst"] == min(accuracy[0b1111 & ~(1 << i)] for i in range(NUM_DEVICES))
    assert shown["requests"]["by_outcome"]["ok"] >= 1
    assert {node["version"] for node in shown["nodes"]} == {shown["version"]}
    assert all(20e6 < node["rss_bytes"] < 1e9 for node in shown["nodes"])


def test_metrics_follow_a_node_that_dies(bundle: Bundle, without_node_2: Any) -> None:
    http = without_node_2.http_address
    until(lambda: (metric(http, "nonn_degraded_requests_total") or 0) > 0)
    assert metric(http, "nonn_expected_accuracy") == bundle.table.accuracy[0b1011]
    assert calls(http, 2, "UNAVAILABLE") >= 1


def test_the_state_names_a_node_that_died_and_what_it_and_the_others_are_worth(
    bundle: Bundle, without_node_2: Any
) -> None:
    shown, accuracy = state(without_node_2.http_address), bundle.table.accuracy
    assert shown["nodes"][2]["state"] != "up"
    # What a dead node is worth is what its return would bring.
    assert shown["nodes"][2]["value"] == pytest.approx(accuracy[0b1111] - accuracy[0b1011])
    assert shown["nodes"][0]["value"] == pytest.approx(accuracy[0b1011] - accuracy[0b1010])
    worst = min((accuracy[0b1011 & ~(1 << i)], f"node-{i}") for i in (0, 1, 3))
    assert (shown["accuracy"]["next_worst"], shown["accuracy"]["next_worst_node"]) == worst


def test_the_state_keeps_the_fault_of_a_node_and_its_return(without_node_2: Any) -> None:
    http = without_node_2.http_address
    shown = state(http)
    assert shown["faults"][-1]["node"] == "node-2"
    assert shown["faults"][-1]["reason"].startswith("unreachable")
    assert abs(shown["faults"][-1]["time"] - shown["time"]) < 240  # of this test, and seconds
    without_node_2.restart(2)
    until(lambda: metric(http, "nonn_nodes_up") == NUM_DEVICES)
    assert any(fault["after"] == "up" and fault["node"] == "node-2" for fault in state(http)["faults"])


def test_a_degraded_cluster_is_ready(without_node_2: Any) -> None:
    assert fetch(f"{without_node_2.http_address}/readyz")[0] == 200


def test_a_cluster_below_its_quorum_lives_and_is_not_ready(below_quorum: Any) -> None:
    http = below_quorum.http_address
    until(lambda: (metric(http, "nonn_requests_total", model="nonn", outcome="below_quorum") or 0) >= 1)
    until(lambda: fetch(f"{http}/readyz")[0] == 503)
    assert fetch(f"{http}/healthz")[0] == 200  # it lives, it only cannot answer
    assert not state(http)["ready"]


def test_every_metric_of_the_documents_is_there(without_node_2: Any) -> None:
    assert {sample[0] for sample in metrics(without_node_2.http_address)} >= NAMES


def test_pages_say_nothing_to_other_origins_and_take_nothing(cluster: LocalCluster) -> None:
    for path in ("/", "/app.js", "/style.css", "/api/state", "/metrics", "/healthz", "/none", "/../pyproject.toml"):
        status, body, headers = fetch(f"{cluster.http_address}{path}")
        assert status == (404 if path in ("/none", "/../pyproject.toml") else 200)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert body
    assert fetch(f"{cluster.http_address}/api/state", method="POST")[0] == 405


def test_a_page_whose_name_points_here_reads_nothing(cluster: LocalCluster) -> None:
    assert cluster.http_address is not None
    port = cluster.http_address.rpartition(":")[2]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        "localhost.evil.example",
        "",
    ):
        for path in ("/", "/api/state", "/metrics"):
            status, body, _ = fetch(cluster.http_address + path, Host=host)
            assert (status, "--http-name" in body) == (421, True), host
    for host in (
        f"127.0.0.1:{port}",
        f"localhost:{port}",
        "localhost",
        "[::1]:80",
        "192.168.1.10",
        socket.gethostname(),
    ):
        assert fetch(f"{cluster.http_address}/healthz", Host=host)[0] == 200, host
    with socket.create_connection(("127.0.0.1", int(port)), TIMEOUT_S) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")  # without the header, as no browser asks
        assert b" 200 " in connection.recv(100)


def test_the_operator_names_a_proxy(bundle: Bundle, inventory: Any, tmp_path: Path) -> None:
    options = ("--inventory", inventory, "--http-port", "0", "--http-name", "Fleet.example", "--deadline", "0.2")
    with logged("nonn", "serve", bundle.path, *options, log=tmp_path / "log") as (ready, _):
        assert fetch(f"{ready['http']}/healthz", Host="fleet.example:443")[0] == 200
        assert fetch(f"{ready['http']}/healthz", Host="other.example")[0] == 421


def test_a_scraper_gets_the_format_that_it_asks_for(cluster: LocalCluster) -> None:
    plain = fetch(f"{cluster.http_address}/metrics")
    assert plain[2]["Content-Type"].startswith("text/plain; version=0.0.4")
    openmetrics = fetch(f"{cluster.http_address}/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics[2]["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics[1].endswith("# EOF\n")


def observed(bundle: Bundle) -> Any:
    """Metrics of an aggregator that nobody has started."""
    watched = Metrics(bundle.num_devices)
    nodes = [Node(id=f"node-{i}", address=f"127.0.0.1:{i + 1}", student=i) for i in range(bundle.num_devices)]
    watched.attach(Aggregator(bundle, nodes, observers=[watched]))
    return watched, nodes


def test_the_series_of_nodes_that_come_and_go_do_not_pile_up(bundle: Bundle) -> None:
    watched, _ = observed(bundle)
    before = len(watched.exposition("")[0])
    for i in range(200):
        node = Node(id=f"guest-{i}", address="127.0.0.1:9", student=0)
        features = np.zeros((1, 4), np.float32)
        reply = Reply(node, ReplyStatus.OK, 0.01, features)
        event = RequestEvent(float(i), 1, "degraded", 1, 0.5, 0.01, (reply,), features={0: features})
        watched.on_state(StateEvent(float(i), node.id, "", "unknown", "joined"))
        watched.on_request(event)
        watched.on_drift(DriftNotice("alarm", node.id, "stuck"))
        watched.on_late(LateEvent(float(i), node.id, 0.1))
        assert f'node="guest-{i}"' in watched.exposition("")[0].decode()
        watched.on_state(StateEvent(float(i), node.id, "up", "", "lease expired"))
        # What still was on its way does not bring the series back.
        watched.on_request(event)
        watched.on_late(LateEvent(float(i), node.id, 0.1))
        watched.on_drift(DriftNotice("clear", node.id, ""))
    text = watched.exposition("")[0].decode()
    assert "guest-" not in text
    assert len(text) < before + 2000  # the figures of all requests, with more digits


def test_every_failure_of_a_node_has_one_of_a_few_codes(bundle: Bundle) -> None:
    watched, nodes = observed(bundle)
    failures = {
        ReplyStatus.SILENT: "DEADLINE_EXCEEDED",
        ReplyStatus.UNREACHABLE: "UNAVAILABLE",
        ReplyStatus.MALFORMED: "BAD_REPLY",
        ReplyStatus.FAILED: "ERROR",
        ReplyStatus.REFUSED: "BAD_REQUEST",
    }
    replies = [Reply(nodes[0], status, 0.1, error="the node's own text 8f3a") for status in failures]
    watched.on_request(RequestEvent(1.0, 1, "below_quorum", replies=tuple(replies)))
    text = watched.exposition("")[0].decode()
    assert {*map(code_of, ReplyStatus)} == set(CODES)
    for code in failures.values():
        assert f'nonn_node_rpc_duration_seconds_count{{code="{code}",node="node-0",part="0"}} 1.0' in text


def test_two_aggregators_in_one_process_count_for_themselves(bundle: Bundle) -> None:
    first, second = observed(bundle)[0], observed(bundle)[0]
    first.on_request(RequestEvent(1.0, 0, "invalid"))
    assert 'outcome="invalid"} 1.0' in first.exposition("")[0].decode()
    assert "invalid" not in second.exposition("")[0].decode()


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("inventory") / "nodes.toml"
    write_inventory(path, [Node(id="a", address="127.0.0.1:9", student=0)])
    return path


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--http-port", "0", "--http-host", "0.0.0.0"], 2, "refusing to serve HTTP beyond loopback without TLS"),
        (["--http-port", "70000"], 2, "--http-port: 70000: must be 1 to 65535"),
        (["--drift-rate", "-1"], 2, "--drift-rate: -1: must be at least 0"),
    ],
)
def test_options_that_cannot_be_kept_end_the_aggregator_with_their_exit_code(
    bundle: Bundle, inventory: Any, options: Any, code: Any, text: Any
) -> None:
    ended = run_here(main, "serve", bundle.path, "--inventory", inventory, *options)
    assert (ended.returncode, text in ended.stderr) == (code, True), ended.stderr


def test_a_taken_http_port_is_named(bundle: Bundle, inventory: Any) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        ended = run_here(main, "serve", bundle.path, "--inventory", inventory, "--http-port", str(port))
    assert ended.returncode == 3
    assert f"127.0.0.1:{port} cannot be bound for HTTP" in ended.stderr


def test_without_the_extra_the_aggregator_says_how_to_get_it_and_serves_without_http(
    bundle: Bundle, inventory: Any
) -> None:
    program = "from nonn.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["serve", str(bundle.path), "--inventory", str(inventory), "--watch-stdin"]
    for module in ("aiohttp", "prometheus_client"):
        command = [sys.executable, "-c", f"import sys; sys.modules['{module}'] = None; {program}"]
        refused = subprocess.run([*command, *arguments, "--http-port", "0"], capture_output=True, text=True)
        assert refused.returncode == 6
        assert "pip install 'nonn[serve]'" in refused.stderr
    served = python(program, *arguments)  # standard input is empty: it ends when it is ready
    assert served.returncode == 0, served.stderr
    assert '"event": "ready"' in served.stdout


def test_beyond_loopback_http_takes_a_certificate_that_is_not_revoked(bundle: Bundle, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "certs")
    for role, name in (("aggregator", "main"), ("client", "alice")):
        authority.issue(role, name)
    certs = tmp_path / "certs"
    write_inventory(tmp_path / "nodes.toml", [Node(id="a", address="127.0.0.1:9", student=0)])
    tls = str(certs / "aggregator/main")
    options = ["--tls", tls, "--http-port", "0", "--http-host", "0.0.0.0", "--deadline", "0.1"]
    command = ["serve", str(bundle.path), "--inventory", str(tmp_path / "nodes.toml"), *options, "--watch-stdin"]
    with process("nonn", *command) as child:
        assert child.stdout is not None
        http = json.loads(child.stdout.readline())["http"]
        assert http.startswith("https://0.0.0.0:")
        url = f"https://127.0.0.1:{http.rpartition(':')[2]}/healthz"

        def get(identity: Any) -> Any:
            context = ssl.create_default_context(cafile=certs / "client/alice/ca.pem")
            context.check_hostname = False
            if identity:
                context.load_cert_chain(identity)
            try:
                with urllib.request.urlopen(url, context=context, timeout=TIMEOUT_S) as response:
                    return response.status
            except urllib.error.HTTPError as exc:
                with exc:
                    return exc.code
            except OSError as exc:  # the handshake, or the first bytes after it, depending on who is faster
                return type(exc).__name__

        assert get(certs / "client/alice/identity.pem") == 200
        assert get(None) != 200
        authority.revoke("client", "alice")
        until(lambda: get(certs / "client/alice/identity.pem") == 403)


def test_the_reference_lists_every_metric_with_its_kind_and_labels() -> None:
    registered = [m for m in vars(Metrics(3)).values() if hasattr(m, "_labelnames")]
    code = {m._name + "_total" * (m._type == "counter"): (m._type, ", ".join(m._labelnames)) for m in registered}
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("| `")]
    assert {name: (kind, labels) for name, kind, labels in rows} == code
    assert all(code in text for code in CODES)
