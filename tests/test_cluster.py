"""A whole cluster: eight node processes and an aggregator on loopback, and devices that die, hang and come back."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from nonn.bundle import Bundle
from nonn.cli import main
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import BundleError, ConfigError, InputError, QuorumError, UnreachableError
from tests.agreement import check_against_offline_fusion
from tests.serving import TIMEOUT_S, children_of, process, run, run_here, until, watched
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 8
DEADLINE_S = 1.0
EVERYBODY = (1 << NUM_DEVICES) - 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("cluster") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("cluster") / "small", num_devices=2)


@pytest.fixture(scope="module")
def inputs() -> Any:
    return toy_data(200, seed=3)[0]


@pytest.fixture
def sample(inputs: NDArray[Any], tmp_path: Path) -> Any:
    """One sample as a file, in the float64 that NumPy users end up with."""
    np.save(tmp_path / "sample.npy", inputs[0].astype(np.float64))
    return tmp_path / "sample.npy"


@pytest.fixture(scope="module")
def started(bundle: Bundle) -> Iterator[Any]:
    with LocalCluster(bundle.path, deadline_s=DEADLINE_S) as cluster, Client(cluster.address) as client:
        yield cluster, client


@pytest.fixture
def cluster(started: Any, inputs: NDArray[Any]) -> Any:
    """The cluster with every device up, whatever the test before did to it."""
    cluster, client = started
    for state in cluster.states():
        if state.state == "dead":
            cluster.restart(state.node)
        elif state.state == "stopped":
            cluster.resume(state.node)
    until(lambda: mask_now(client, inputs) == EVERYBODY)
    return cluster


@pytest.fixture
def client(started: Any) -> Any:
    return started[1]


def mask_now(client: Any, inputs: NDArray[Any]) -> Any:
    """Who answers now; nobody counts as the empty set."""
    with contextlib.suppress(QuorumError):
        return client.infer(inputs[:1]).mask
    return 0


@pytest.mark.alone
def test_a_restarted_node_is_used_again_within_two_seconds(
    inputs: NDArray[Any], cluster: LocalCluster, client: Any
) -> None:
    cluster.kill(5)
    until(lambda: mask_now(client, inputs) == EVERYBODY & ~(1 << 5))
    for _ in range(20):  # more failures than the breaker takes
        client.infer(inputs[:1])
    before = cluster.states()[5]
    cluster.restart(5)
    assert until(lambda: mask_now(client, inputs) == EVERYBODY) < 2.0
    after = cluster.states()[5]
    assert after.address == before.address
    assert after.pid != before.pid


@pytest.mark.alone
def test_a_hung_node_costs_at_most_two_deadlines_and_is_used_again_when_it_goes_on(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, client: Any
) -> None:
    cluster.stop(2)
    assert [state.state for state in cluster.states()].count("stopped") == 1
    answers = [client.infer(inputs[i : i + 1]) for i in range(20)]
    waited = [answer for answer in answers if answer.latency_s >= 0.9 * DEADLINE_S]
    assert len(waited) <= 2
    assert answers[0].latency_s >= 0.09 * DEADLINE_S  # how long any node is waited for
    assert max(answer.latency_s for answer in answers) < 3 * DEADLINE_S
    for row, answer in enumerate(answers):
        assert answer.mask == EVERYBODY & ~(1 << 2)
        check_against_offline_fusion(bundle, answer, slice(row, row + 1))
    assert answers[0].failures["node-2"].startswith("not waited for")  # it is worth little
    cluster.resume(2)
    assert until(lambda: mask_now(client, inputs) == EVERYBODY) < 5.0


def test_requests_in_flight_to_a_node_that_is_killed_still_answer(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, client: Any
) -> None:
    cluster.stop(1)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(client.infer(inputs[:1])))
    asking.start()
    cluster.kill(1)  # the request is with it, or just about to be: both must answer
    asking.join(TIMEOUT_S)
    assert answers[0].mask == EVERYBODY & ~(1 << 1)
    check_against_offline_fusion(bundle, answers[0], slice(1))


def test_of_two_hundred_concurrent_requests_none_is_lost_while_devices_die(
    inputs: NDArray[Any], tmp_path: Path
) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=4)
    answered = threading.Semaphore(0)

    class Counting(Client):
        def infer(self, batch: Any) -> Any:
            answer = super().infer(batch)
            answered.release()
            return answer

    def kill_three(cluster: LocalCluster) -> None:
        for node in (0, 1, 3):
            for _ in range(30):  # so that requests are answered before, between and after
                assert answered.acquire(timeout=TIMEOUT_S)
            cluster.kill(node)

    # A deadline that two hundred requests at once can keep on a slow machine: only the kills are under test.
    with LocalCluster(bundle.path, deadline_s=TIMEOUT_S) as cluster, Counting(cluster.address, 2 * TIMEOUT_S) as client:
        killer = threading.Thread(target=kill_three, args=(cluster,))
        killer.start()
        answers = client.infer_many((inputs[i % 200 : i % 200 + 1] for i in range(400)), concurrency=200)
        killer.join(TIMEOUT_S)
    assert len(answers) == 400
    for i, answer in enumerate(answers):
        check_against_offline_fusion(bundle, answer, slice(i % 200, i % 200 + 1))
    assert {0b1111, 0b0100} <= {answer.mask for answer in answers}


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (np.zeros((1, 3, 8, 8), np.uint8), "expected [B, 1, 8, 8]"),
        (np.zeros((8, 8), np.uint8), "expected [B, 1, 8, 8]"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "NaN or infinity in sample 0"),
        (np.zeros((1, 1, 8, 8), np.int64), "dtype int64"),
    ],
)
def test_inputs_that_cannot_be_answered_are_an_input_error_that_names_the_address(
    cluster: LocalCluster, client: Any, batch: Any, text: Any
) -> None:
    with pytest.raises(InputError) as caught:
        client.infer(batch)
    assert text in str(caught.value)
    assert cluster.address in str(caught.value)


def test_metadata_has_the_inputs_and_the_state_of_each_node(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, client: Any
) -> None:
    client.infer(inputs[:1])
    metadata = client.metadata()
    assert metadata.shape == (1, 8, 8)
    assert metadata.dtype == "uint8"
    assert metadata.classes == bundle.manifest.classes
    assert metadata.bundle == bundle.hash
    assert metadata.num_devices == NUM_DEVICES
    assert [node["address"] for node in metadata.nodes] == [state.address for state in cluster.states()]
    assert {node["state"] for node in metadata.nodes} == {"up"}
    assert all(0 < node["answered"] <= node["asked"] and node["latency_s"] > 0 for node in metadata.nodes)


def test_predict_answers_for_images_and_arrays_and_a_bad_file_costs_that_file_only(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, client: Any, sample: Any, tmp_path: Path
) -> None:
    Image.fromarray(inputs[0, 0]).save(tmp_path / "gray.png")
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    Image.fromarray(inputs[0, 0]).convert("RGB").save(folder / "a" / "colour.png")
    (folder / "text.png").write_text("no image")
    np.savez(tmp_path / "batch.npz", inputs=inputs[:2], labels=np.arange(2))
    files = [tmp_path / "gray.png", tmp_path / "gone.png", folder, sample, tmp_path / "batch.np[yz]", "-"]
    (tmp_path / "camera").write_bytes(2 * (tmp_path / "gray.png").read_bytes())  # a stream of two frames
    with (tmp_path / "camera").open("rb") as frames:
        asked = run("nonn", "predict", cluster.address, *files, "--json", stdin=frames)
    assert asked.returncode == 2, asked.stderr  # of the first bad one
    assert f"{tmp_path / 'gone.png'}: no such file" in asked.stderr
    assert f"{folder / 'text.png'}: cannot be read as an image (not an image)" in asked.stderr
    rows = json.loads(asked.stdout)
    answered = [tmp_path / "gray.png", folder / "a" / "colour.png", sample, *[tmp_path / "batch.npz"] * 2, "-", "-"]
    assert [(row["file"], row["index"]) for row in rows] == [
        (str(file), int(i in (4, 6))) for i, file in enumerate(answered)
    ]
    recorded, _ = bundle.features
    label = int(bundle.head.logits({i: recorded[i][:1] for i in range(NUM_DEVICES)}).argmax())
    assert {row["label"] for i, row in enumerate(rows) if i != 4} == {label}
    assert rows[0]["class"] == bundle.manifest.classes[label]
    assert rows[0]["answered"] == list(range(NUM_DEVICES))
    assert rows[0]["expected_accuracy"] == bundle.table.accuracy[EVERYBODY]
    assert client.infer([tmp_path / "gray.png", sample]).labels.tolist() == [label, label]
    told = run_here(main, "predict", cluster.address, tmp_path / "gray.png")
    assert told.returncode == 0
    assert f"{tmp_path / 'gray.png'}[0]: {bundle.manifest.classes[label]}, confidence " in told.stdout
    assert "8 of 8 devices answered" in told.stdout


@pytest.fixture
def nobody() -> Iterator[Any]:
    """An address without a listener, reserved so that no process can bind it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_an_address_without_a_server_is_unreachable(nobody: Any, sample: Any) -> None:
    with Client(nobody) as client:
        with pytest.raises(UnreachableError, match=nobody):
            client.infer(np.zeros((1, 1, 8, 8), np.uint8))
        assert not client.ready()
    asked = run_here(main, "predict", nobody, sample)
    assert asked.returncode == 4
    assert nobody in asked.stderr


def test_a_device_is_no_aggregator(cluster: LocalCluster) -> None:
    with Client(cluster.states()[0].address) as client, pytest.raises(ConfigError, match="a nonn aggregator"):
        client.infer(np.zeros((1, 1, 8, 8), np.uint8))


def test_devices_die_one_by_one_and_every_answer_is_the_offline_fusion_of_the_rest(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, client: Any, sample: Any
) -> None:
    """After the other tests of the cluster, which would start all devices again."""
    batches = [inputs[i : i + 1] for i in range(20)]
    for failed in range(NUM_DEVICES):
        answers = client.infer_many(batches, concurrency=4)
        assert {answer.mask for answer in answers} == {EVERYBODY >> failed << failed}
        assert {answer.degraded for answer in answers} == {failed > 0}
        for row, answer in enumerate(answers):
            check_against_offline_fusion(bundle, answer, slice(row, row + 1))
        assert client.ready()
        cluster.kill(failed)
    with pytest.raises(QuorumError) as caught:
        client.infer(batches[0])
    assert "0 of 8 devices answered, the quorum is 1" in str(caught.value)
    assert all(f"node-{i} (" in str(caught.value) for i in range(NUM_DEVICES))
    with pytest.raises(QuorumError):
        client.infer_many(batches)
    assert not client.ready()
    asked = run_here(main, "predict", cluster.address, sample)
    assert asked.returncode == 5
    assert "node-0" in asked.stderr


def test_a_quorum_is_kept_and_a_node_that_dies_at_start_is_named_with_its_log(small: Any) -> None:
    images = np.zeros((1, 1, 8, 8), np.uint8)
    with LocalCluster(small.path, quorum=2) as cluster, Client(cluster.address) as client:
        assert client.infer(images).mask == 0b11
        cluster.kill(1)
        with pytest.raises(QuorumError, match=r"1 of 2 devices answered, the quorum is 2; missing: node-1"):
            client.infer(images)
        assert not client.ready()
        port = int(cluster.states()[1].address.rpartition(":")[2])
        with (
            socket.create_server(("127.0.0.1", port)),
            pytest.raises(ConfigError, match=f"(?s)node 1 ended at start with code 3.*port {port} is in use"),
        ):
            cluster.restart(1)


def test_every_process_is_gone_when_the_block_ends_even_by_an_error_and_the_aggregator_is_unreachable(
    small: Any,
) -> None:
    before = children_of(os.getpid())
    clients = []

    def block() -> None:
        with LocalCluster(small.path) as cluster:
            clients.append(Client(cluster.address))
            assert clients[0].ready()
            cluster.stop(0)
            assert len(children_of(os.getpid())) == len(before) + 3
            raise RuntimeError("of the block")

    with pytest.raises(RuntimeError, match="of the block"):
        block()
    assert children_of(os.getpid()) == before
    with clients[0] as client, pytest.raises(UnreachableError):
        client.infer(np.zeros((1, 1, 8, 8), np.uint8))


def test_a_cluster_that_cannot_start_reports_the_reason_and_leaves_no_process(small: Any, tmp_path: Path) -> None:
    before = children_of(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"(?s)the aggregator ended at start with code 3.*port {port} is in use"):
            LocalCluster(small.path, port=port).__enter__()
    broken = shutil.copytree(small.path, tmp_path / "broken")
    student = broken / small.manifest.students[1].file
    student.write_bytes(student.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"student-1\.onnx: truncated or altered"):
        LocalCluster(broken).__enter__()
    with pytest.raises(UnreachableError, match="was not ready within 0"):
        LocalCluster(small.path, start_timeout_s=0.0).__enter__()
    assert children_of(os.getpid()) == before


def test_a_wrong_inventory_ends_the_aggregator_with_3(small: Any, tmp_path: Path) -> None:
    (tmp_path / "nodes.toml").write_text('[[node]]\nid = "a"\naddress = "h:1"\nstudent = 7\n')
    ended = run_here(main, "serve", small.path, "--inventory", tmp_path / "nodes.toml")
    assert ended.returncode == 3
    assert "node[0] 'a': student 7; the bundle has 0 to 1" in ended.stderr


@contextlib.contextmanager
def running_up(bundle: Bundle) -> Iterator[Any]:
    """``nonn up`` with its table printed; yields the process and the address of its aggregator."""
    with process("nonn", "up", bundle.path) as child:
        assert child.stdout is not None
        title = child.stdout.readline().decode()
        for _ in range(5 + bundle.num_devices):
            assert child.stdout is not None
            title += child.stdout.readline().decode()
        yield child, title


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_nonn_up_ends_no_process_is_left(small: Any, number: Any) -> None:
    with running_up(small) as (child, table):
        pids = children_of(child.pid)
        assert len(pids) == 3
        assert all(str(pid) in table for pid in pids[:2])
        with watched(pids) as all_ended:
            os.kill(pids[0], signal.SIGSTOP)  # a hung child too; it stops when it next runs
            until(lambda: psutil.Process(pids[0]).status() == psutil.STATUS_STOPPED)
            child.send_signal(number)
            assert all_ended()
        assert child.wait(TIMEOUT_S) == (-signal.SIGKILL if number == signal.SIGKILL else 0)


def test_nonn_up_shows_its_nodes_and_answers(small: Any) -> None:
    with running_up(small) as (_, table):
        assert "toy at 127.0.0.1:" in table
        for word in ("device", "part", "state", "pid", "address", "latency", "answered", "value", "up"):
            assert word in table
        address = table.partition("toy at ")[2].split()[0]
        with Client(address) as client:
            assert client.infer(np.zeros((1, 1, 8, 8), np.uint8)).mask == 0b11


def test_on_a_terminal_of_80_columns_nonn_up_shows_ports_and_restarts_devices_on_a_key(small: Any) -> None:
    primary, secondary = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "40"}
    command = [sys.executable, "-m", "nonn", "up", str(small.path)]
    child = subprocess.Popen(
        command, stdin=secondary, stdout=secondary, stderr=subprocess.PIPE, env=environment, start_new_session=True
    )
    os.close(secondary)
    seen = ""

    def shows(*words: str) -> bool:
        nonlocal seen
        if select.select([primary], [], [], TIMEOUT_S)[0]:
            seen += re.sub(r"\x1b\[[\d;?]*\w", "", os.read(primary, 65536).decode(errors="replace"))
        return all(word in seen for word in words)

    try:
        until(lambda: shows("r: restart devices"))
        assert re.search(r"up +│ +\d+ +│ 127\.0\.0\.1:\d+ ", seen)
        victim = children_of(child.pid)[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: shows("dead"))
        seen = ""
        os.write(primary, b"r")
        until(lambda: shows("up") and victim not in children_of(child.pid) and len(children_of(child.pid)) == 3)
        child.send_signal(signal.SIGINT)
        until(lambda: shows("every process has ended"))
        assert child.wait(TIMEOUT_S) == 0
    finally:
        child.kill()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()
        os.close(primary)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.nan, math.inf])
def test_a_client_refuses_a_timeout_that_is_none(timeout_s: float) -> None:
    with pytest.raises(ConfigError, match="positive number of seconds"):
        Client("127.0.0.1:1", timeout_s)
