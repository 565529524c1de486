"""``nonn top`` on a real cluster: for scripts, for people, and where there is nothing to show."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nonn
from nonn.cli import main
from nonn.client import Client
from nonn.cluster import LocalCluster
from tests.serving import TIMEOUT_S, run_here, until
from tests.toys import toy_bundle


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    bundle = toy_bundle(tmp_path_factory.mktemp("top") / "bundle", num_devices=4, num_parts=2)
    with LocalCluster(bundle.path) as cluster, Client(cluster.address) as client:
        cluster.kill(3)
        until(lambda: client.infer(np.zeros((1, 1, 8, 8), np.uint8)).mask == 0b0111)
        until(lambda: [node["state"] for node in client.metadata().state["nodes"]][3] == "out")
        until(lambda: client.metadata().state["nodes"][0]["rss_bytes"] is not None)
        yield cluster


def test_json_is_one_object_and_nothing_else(cluster: LocalCluster) -> None:
    shown = run_here(main, "top", cluster.address, "--json")
    assert shown.returncode == 0, shown.stderr
    state = json.loads(shown.stdout)
    assert [node["state"] for node in state["nodes"]] == ["up", "up", "up", "out"]
    assert state["accuracy"]["next_worst"] < state["accuracy"]["now"] < state["accuracy"]["all"]
    assert state["faults"][0]["node"] == "node-3"


def test_once_prints_nodes_accuracy_and_faults(cluster: LocalCluster) -> None:
    shown = run_here(main, "top", cluster.address, "--once")
    assert shown.returncode == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    assert "with 3 of 4 students on 3 of 4 nodes;" in text
    assert "fails next" in text
    assert re.search(r"accuracy now [\d.]+% \([\d.]+% to [\d.]+%\)", text)
    between = r"[\d.]+% \([\d.]+% to [\d.]+%\)"
    assert re.search(rf"{between} if node-\d fails next, {between} on average", text)
    for word in (
        "node-0",
        "part",
        "up",
        "out",
        "p50",
        "p99",
        "100.0%",
        "MB",
        nonn.__version__,
        "memory",
        cluster.address,
    ):
        assert word in text
    assert "node-3 up → " in text
    assert "unreachable" in text


def test_a_narrow_screen_keeps_what_is_urgent(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run_here(main, "top", cluster.address, "--once")
    assert "…" not in shown.stdout
    for word in ("node-0", "state", "value", "accuracy now"):
        assert word in shown.stdout
    assert "address" not in shown.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGTERM, 4)])
def test_live_on_a_terminal_it_goes_on_until_it_is_ended(cluster: LocalCluster, number: Any, code: int) -> None:
    aggregator = cluster._aggregator
    assert aggregator is not None
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "nonn", "top", cluster.address, "--timeout", "1" if code else "5"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=secondary, stderr=subprocess.PIPE, env=environment
    )
    os.close(secondary)
    seen, deadline = "", time.monotonic() + TIMEOUT_S
    try:
        # Twice: it refreshes by itself.
        while seen.count("accuracy now") < 2 and time.monotonic() < deadline:
            assert select.select([primary], [], [], TIMEOUT_S)[0]
            seen += os.read(primary, 65536).decode(errors="replace")
        if code:  # the aggregator does not answer when the command ends
            aggregator.send(signal.SIGSTOP)
        child.send_signal(number)
        while select.select([primary], [], [], TIMEOUT_S)[0]:
            try:
                data = os.read(primary, 65536)
            except OSError:  # Linux tells the end of a terminal so
                break
            seen += data.decode(errors="replace")
        assert child.wait(TIMEOUT_S) == code
        assert child.stderr is not None
        assert child.stderr.read() == b""
        assert seen.count("accuracy now") >= 2
        assert seen.count("\x1b[?1049h") == seen.count("\x1b[?1049l") == 1  # the screen is as it was
    finally:
        aggregator.send(signal.SIGCONT)
        child.kill()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()
        os.close(primary)


def test_nobody_there_and_no_aggregator_are_told_apart(cluster: LocalCluster) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        nobody = run_here(main, "top", address, "--timeout", "1")
    assert nobody.returncode == 4
    assert address in nobody.stderr
    device = run_here(main, "top", cluster.states()[0].address)
    assert device.returncode == 3
    assert "is this the address of a nonn aggregator?" in device.stderr
