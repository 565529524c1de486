"""Addresses in commands and clients, and errors of numbers that are out of range."""

from __future__ import annotations

import http.server
import logging
import threading
from pathlib import Path

import pytest
from nonn_device.cli import main as device_main

from nonn.aggregator.inventory import Node, warn_of_unknown_hosts
from nonn.cli import main
from nonn.client import Client
from nonn.errors import AddressError, ConfigError, UnreachableError
from nonn.rpc.address import check_bind, split_address, with_port
from tests.observing import logged
from tests.serving import running_aggregator, until
from tests.toys import toy_bundle

NO_HOST = "a..b"  # none that DNS would be asked about


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("[::1]:50051", ("::1", 50051)),
        ("kitchen.local:1", ("kitchen.local", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts
    Client(text).close()


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:99999",
        "host:1:x",
        "::1:5",
        "host",
        "",
        "h:0",
        "unix:/x",
        "[kitchen]:1",
        "unix:5005",
        "UNIX:5005",
        "unix-abstract:5005",
        "dns:5005",
        "ipv4:5005",
        "vsock:5005",
    ],
)
def test_an_address_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not host:port") as caught:
        Client(text)
    assert repr(text) in str(caught.value)


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_an_http_port_is_named_as_one() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with (
                Client(f"127.0.0.1:{server.server_port}") as client,
                pytest.raises(UnreachableError, match="HTTP port"),
            ):
                client.metadata()
        finally:
            server.shutdown()
            thread.join()


def test_a_host_keeps_the_port_that_it_has() -> None:
    assert [with_port(text, "5") for text in ("h", "h:1", "[::1]", "[::1]:1")] == ["h:5", "h:1", "[::1]:5", "[::1]:1"]


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        (NO_HOST, 0, f"host '{NO_HOST}' cannot be resolved"),
        ("", 0, "--host is empty"),
        ("192.0.2.1", 0, "--host 192.0.2.1: not an address of this machine"),  # RFC 5737: nobody has it
        ("127.0.0.1", 99999, "--port 99999: must be 1 to 65535"),
    ],
)
def test_an_address_that_cannot_be_bound_is_an_error_with_the_cause(host: str, port: int, words: str) -> None:
    check_bind("127.0.0.1", 0)
    with pytest.raises(AddressError) as caught:
        check_bind(host, port)
    assert words in str(caught.value)


def test_a_host_that_cannot_be_resolved_is_a_warning_with_node_and_host(caplog: pytest.LogCaptureFixture) -> None:
    known = Node(id="hall", address="127.0.0.1:1", student=0)
    with caplog.at_level(logging.WARNING):
        warn_of_unknown_hosts([known, Node(id="kitchen", address=f"{NO_HOST}:1", student=1)])
    (record,) = logged(caplog)
    assert f"node 'kitchen': host '{NO_HOST}' cannot be resolved" in record.getMessage()


def test_addresses_that_cannot_be_had_here_are_no_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path), "--host", NO_HOST]) == 3
    assert f"--host: host '{NO_HOST}' cannot be resolved" in capsys.readouterr().err
    assert device_main(["serve", str(tmp_path), "--student", "0", "--host", ""]) == 3
    assert "--host is empty" in capsys.readouterr().err


def test_an_aggregator_with_an_unresolvable_host_warns_and_serves(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    with running_aggregator(bundle.path, [f"{NO_HOST}:1"], tmp_path) as ready:
        assert ready["nodes"] == 1
        until(lambda: "node 'node-0': host" in (tmp_path / "aggregator.log").read_text())
