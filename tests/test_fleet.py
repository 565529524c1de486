"""Rolling updates over real processes, and the commands around them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nonn.cli import main
from nonn.cli.fleet import _show
from nonn.client import Client
from nonn.errors import ConfigError
from nonn.fleet.hosts import load_hosts
from nonn.security.tls import load_tls
from tests import toys
from tests.agreement import check_against_offline_fusion
from tests.fleets import Fleet, members
from tests.serving import process, run, run_here, until

NODES = ("a", "b", "c", "d")
LEASE = ("--lease", "0.9")
INVENTORY = Path(__file__).parent.parent / "devices/pi/fleet.toml"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two bundles for the same data whose students differ, even in width."""
    folder = tmp_path_factory.mktemp("fleet")
    first = toys.toy_bundle(folder / "first", num_devices=4)
    return first, toys.toy_bundle(folder / "second", num_devices=4, width=5)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        yield Fleet(tmp_path, stack)


@pytest.fixture
def state() -> Iterator[Any]:
    """A short name, since a socket's may have 107 characters; one that a shell would read in another way."""
    with tempfile.TemporaryDirectory(prefix="nonn $x ") as folder:
        yield Path(folder)


def fleet_command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return run_here(main, "fleet", *arguments)


def status(state: Any) -> Any:
    return json.loads(fleet_command("status", "--state", state, "--json").stdout)


def floor_of(*bundles: Any) -> Any:
    """What both bundles keep with any two of four devices."""
    masks = [mask for mask in range(16) if mask.bit_count() >= 2]
    return min(float(bundle.table.accuracy[masks].min()) for bundle in bundles)


class Asking:
    """Asks again and again, and checks each answer against its bundle, offline."""

    def __init__(self, address: Any, bundles: Any) -> None:
        self._address, self._bundles = address, {bundle.hash: bundle for bundle in bundles}
        self.answers: list[Any] = []
        self.lost: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        sample = toys.toy_data(200, seed=3)[0][:1]
        with Client(self._address, 30) as client:
            while not self._stop.wait(0.01):
                try:
                    self.answers.append(client.infer(sample))
                except Exception as exc:
                    self.lost.append(exc)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def last(self) -> Any:
        """Bundle and mask of the last answer."""
        return self.answers[-1].bundle, self.answers[-1].mask

    def check(self, floor: Any) -> None:
        assert not self.lost, self.lost[:3]
        assert len(self.answers) > 50
        for answer in {(a.bundle, a.mask): a for a in self.answers}.values():
            check_against_offline_fusion(self._bundles[answer.bundle], answer, slice(1))
            assert answer.expected_accuracy >= floor


@pytest.fixture
def pair(bundles: Any, fleet: Any) -> Iterator[Any]:
    """Two aggregators with the same four nodes: the inventory, state folders, processes and addresses."""
    with contextlib.ExitStack() as stack:
        states = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn"))) for _ in range(2)]
        started = [fleet.aggregator(bundles[0], "--state", state, *LEASE) for state in states]
        inventory = fleet.folder / "fleet.toml"
        hosts = [
            f'[aggregators.hosts.main-{i}]\nansible_connection = "local"\nnonn_state = "{state}"\n'
            for i, state in enumerate(states)
        ]
        inventory.write_text("".join(hosts) + "[nodes.hosts.a]\n")
        addresses = [address for _, address in started]
        for name in NODES:
            fleet.node(name, *addresses, options=("--dial-out",) if name == "d" else ())
        yield inventory, states, [process for process, _ in started], addresses


def test_two_aggregators_move_to_another_bundle_and_back_without_losing_a_request_or_falling_below_the_floor(
    bundles: Any, fleet: Any, pair: Any
) -> None:
    first, second = bundles
    floor = floor_of(*bundles)
    inventory, states, processes, addresses = pair
    clients = [fleet.client(address) for address in addresses]
    until(lambda: all(len(members(client)) == 4 for client in clients))
    students = members(clients[0])
    assert members(clients[1]) == students
    with Asking(addresses[0], bundles) as one, Asking(addresses[1], bundles) as two:
        until(lambda: len(one.answers) > 20 and len(two.answers) > 20)
        pushed = fleet_command("push", second.path, "--inventory", inventory, "--floor", str(floor))
        assert pushed.returncode == 0, pushed.stderr
        until(lambda: all(asking.last == (second.hash, 0b1111) for asking in (one, two)))
    for asking, client in zip((one, two), clients, strict=True):
        asking.check(floor)
        # From the switch on nothing is answered with the old one.
        served = [answer.bundle for answer in asking.answers]
        assert served == [first.hash] * served.count(first.hash) + [second.hash] * served.count(second.hash)
        assert members(client) == students  # everybody kept its number
        assert client.metadata().bundle == second.hash
    told = pushed.stdout.splitlines()
    assert sum(line.startswith(f"bundle {second.hash[:12]} is served:") for line in told) == 1
    assert told[-2:] == ["main-1 follows:", f"bundle {second.hash[:12]} is served by 4 nodes"]
    # An aggregator that is down during an update is left out, and catches up.
    processes[1].end(signal.SIGKILL)
    with Asking(addresses[0], bundles) as one:
        until(lambda: len(one.answers) > 20)
        back = fleet_command("rollback", "--inventory", inventory, "--floor", str(floor))
        assert (back.returncode, "1 of 2 aggregators do not answer" in back.stderr) == (4, True), back.stderr
        until(lambda: one.last == (first.hash, 0b1111))
        fleet.aggregator(first, "--state", states[1], *LEASE, port=int(addresses[1].rpartition(":")[2]))
        assert clients[1].metadata().bundle == second.hash  # as before, whatever the command line says
        log = fleet.folder / "3.log"
        until(lambda: f"{addresses[1]}: serves bundle {second.hash[:12]}…, this node one of" in log.read_text())
        assert members(clients[1]) == {}
        again = fleet_command("push", first.path, "--inventory", inventory, "--floor", str(floor))
        assert again.returncode == 0, again.stderr
        until(lambda: members(clients[1]) == students)
    one.check(floor)
    assert [status(state)["previous"] for state in states] == [second.hash] * 2
    assert [[b["bundle"] for b in status(state)["bundles"]] for state in states] == [[first.hash]] * 2
    assert not [log for log in fleet.folder.glob("*.log") if "Traceback" in log.read_text()]


@pytest.fixture
def four(bundles: Any, fleet: Any, state: Any) -> Any:
    """Four nodes that serve the first bundle, and a client."""
    _, address = fleet.aggregator(bundles[0], "--state", state, *LEASE)
    client = fleet.client(address)
    nodes = {name: fleet.node(name, address) for name in NODES}
    until(lambda: len(members(client)) == 4)
    return nodes, client


def test_what_cannot_keep_the_floor_is_refused_and_changes_nothing(bundles: Any, state: Any, four: Any) -> None:
    first, second = bundles
    full = float(first.table.accuracy[-1])
    refused = fleet_command("push", second.path, "--state", state, "--floor", str(full + 1e-3))
    assert (refused.returncode, "below the floor" in refused.stderr) == (3, True)
    tight = fleet_command("drain", "a", "--state", state, "--floor", "1")
    assert (tight.returncode, "without node 'a' the accuracy would be" in tight.stderr) == (3, True)
    assert len(members(four[1])) == 4
    assert len(status(state)["bundles"]) == 1


def test_a_push_that_loses_a_node_stops_and_is_undone(bundles: Any, fleet: Any, state: Any, four: Any) -> None:
    (first, second), (nodes, client) = bundles, four
    floor = str(floor_of(*bundles))
    # Whoever is moved first hangs.
    with process("nonn", "fleet", "push", second.path, "--state", state, "--floor", floor, "--wait", "2") as push:
        assert push.stdout is not None
        line = push.stdout.readline().decode()
        moving = line.split()[1]
        nodes[moving].child.send_signal(signal.SIGSTOP)
        errors = push.communicate()[1].decode()
        assert push.returncode == 3
        assert f"node {moving} did not come back" in errors
        assert "nonn fleet rollback" in errors
    nodes[moving].child.send_signal(signal.SIGCONT)
    assert {b["served"]: b["bundle"] for b in status(state)["bundles"]} == {True: first.hash, False: second.hash}
    undone = run("nonn", "fleet", "rollback", "--state", state)
    assert undone.returncode == 0, undone.stderr
    until(lambda: len(members(client)) == 4)
    assert [b["bundle"] for b in status(state)["bundles"]] == [first.hash]
    assert "Traceback" not in (fleet.folder / "1.log").read_text()


def test_a_node_that_one_aggregator_has_drained_stays_out_of_all_until_it_is_let_in(
    bundles: Any, fleet: Any, pair: Any
) -> None:
    inventory, states, processes, addresses = pair
    clients = [fleet.client(address) for address in addresses]
    until(lambda: all(members(client).keys() == set(NODES) for client in clients))
    # Only the first aggregator is told; the node leaves the second too, and does not return to it.
    assert fleet_command("drain", "a", "--state", states[0]).returncode == 0
    assert members(clients[0]).keys() == set(NODES) - {"a"}
    until(lambda: members(clients[1]).keys() == set(NODES) - {"a"})
    assert {n["node"]: n["state"] for n in status(states[0])["nodes"]}["a"] == "drained"
    # It is kept over restarts.
    for number, port in enumerate(int(address.rpartition(":")[2]) for address in addresses):
        processes[number].end(signal.SIGKILL)
        fleet.aggregator(bundles[0], "--state", states[number], *LEASE, port=port)
    until(lambda: all(members(client).keys() == set(NODES) - {"a"} for client in clients))
    # With the inventory all are told, also those that do not have the node now; it may be repeated.
    for _ in range(2):
        drained = fleet_command("drain", "a", "--inventory", inventory)
        assert drained.returncode == 0, drained.stderr
    assert [{n["node"]: n["state"] for n in status(state)["nodes"]}["a"] for state in states] == ["drained"] * 2
    assert fleet_command("drain", "--undo", "a", "--inventory", inventory).returncode == 0
    until(lambda: all(members(client).keys() == set(NODES) for client in clients))
    assert "served" in fleet_command("status", "--state", states[0]).stdout
    unknown = fleet_command("drain", "z", "--inventory", inventory)
    assert (unknown.returncode, "no node 'z'" in unknown.stderr) == (3, True)


def test_one_state_folder_is_of_one_aggregator_and_nobody_else_may_open_its_socket(
    bundles: Any, fleet: Any, state: Any
) -> None:
    fleet.aggregator(bundles[0], "--state", state)
    assert (state / "control.sock").stat().st_mode & 0o777 == 0o600
    second = run_here(main, "serve", bundles[0].path, "--joins", "--join-token-file", fleet.token, "--state", state)
    assert (second.returncode, "another aggregator uses this folder" in second.stderr) == (3, True)


def test_wrong_use_is_told(bundles: Any, tmp_path: Path, state: Any) -> None:
    for arguments, code, text in (
        (("status", "--state", state), 4, "start one with: nonn serve --joins --state"),
        (("push", bundles[0].path, "--state", state, "--floor", "2"), 2, "must be between 0 and 1"),
        (("push", bundles[0].path, "--state", state), 2, "--floor"),
        (("status", "--inventory", tmp_path / "none.toml"), 2, "no such file"),
        (("status", "--state", tmp_path / ("x" * 120)), 3, "choose a shorter one"),
    ):
        ended = fleet_command(*arguments)
        assert (ended.returncode, text in ended.stderr) == (code, True), ended.stderr
    ended = run_here(main, "serve", bundles[0].path, "--state", state)
    assert (ended.returncode, "--state is for a fleet whose nodes all join" in ended.stderr) == (2, True)


SSH = """#!/bin/sh
# In place of sshd: the command goes through a shell, as there, and sees the aggregator's program under its own path.
echo "$8" >> {log}
[ "$8" = nobody@10.0.0.9 ] && exit 255
exec sh -c "$9"
"""
SUDO = """#!/bin/sh
[ "$1" = /opt/nonn/bin/nonn ] && shift && exec {python} -m nonn "$@"
exec "$@"
"""


def test_with_an_inventory_the_same_is_done_on_the_aggregators_own_machine(
    bundles: Any, fleet: Any, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bundles
    _, address = fleet.aggregator(first, "--state", state, *LEASE)
    client = fleet.client(address)
    fleet.node("a", address)
    until(lambda: members(client).keys() == {"a"})
    programs, log = fleet.folder / "bin", fleet.folder / "ssh.log"
    programs.mkdir()
    for name, text in (("ssh", SSH), ("sudo", SUDO)):
        (programs / name).write_text(text.format(log=log, python=sys.executable))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    inventory = fleet.folder / "fleet.toml"
    inventory.write_text(
        f'[all.vars]\nansible_user = "pi"\nnonn_state = "{state}"\nansible_port = 22\n'
        '[aggregators.hosts.main]\nansible_host = "10.0.0.8"\n[nodes.hosts.a]\n'
    )
    # One node alone: moving it leaves nobody for a moment, which takes a floor of nothing.
    refused = run("nonn", "fleet", "push", second.path, "--inventory", inventory, "--floor", "0.5")
    assert (refused.returncode, "floor that can be kept is 0.0000" in refused.stderr) == (3, True), refused.stderr
    pushed = run("nonn", "fleet", "push", second.path, "--inventory", inventory, "--floor", "0")
    assert pushed.returncode == 0, pushed.stderr
    shown = json.loads(run("nonn", "fleet", "status", "--inventory", inventory, "--json").stdout)
    assert [(b["bundle"], b["served"]) for b in shown["bundles"]] == [(second.hash, True)]
    assert {path.name for path in state.iterdir()} == {"bundles", "state.json", "control.sock"}
    inventory.write_text(inventory.read_text().replace("10.0.0.8", "10.0.0.9").replace('"pi"', '"nobody"'))
    ended = run("nonn", "fleet", "status", "--inventory", inventory)
    assert (ended.returncode, "main: ssh to 10.0.0.9 failed; try: ssh" in ended.stderr) == (4, True), ended.stderr


def test_init_issues_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    inventory = tmp_path / "fleet.toml"
    inventory.write_text(INVENTORY.read_text())
    assert fleet_command("init", inventory).returncode == 0
    node = tmp_path / "certs/node/kitchen"
    tls = load_tls(node, "node")
    assert tls is not None
    assert tls.identity.id == "kitchen"
    before = (node / "identity.pem").read_bytes()
    inventory.write_text(INVENTORY.read_text() + '\n[nodes.hosts.cellar]\nansible_host = "192.168.1.22"\n')
    again = fleet_command("init", inventory)
    assert (again.returncode, "1 issued, 3 already present" in again.stdout) == (0, True), again.stdout
    assert (node / "identity.pem").read_bytes() == before
    assert (tmp_path / "certs/node/cellar/identity.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("[nodes.hosts.kitchen]", "[nodes.hosts.Kitchen]"), "lower-case letters"),
        (('"192.168.1.21"', '"192.168.1.20"'), "'kitchen' and 'attic' have the same address"),
        (("[aggregators.hosts.main]", "[others.hosts.main]"), r"no aggregators; write \[aggregators.hosts.ID\]"),
        (("[all.vars]", "[[all.vars]]"), "all.vars is not a table"),
    ],
)
def test_a_wrong_inventory_is_refused_with_file_and_host(tmp_path: Path, change: Any, text: Any) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(INVENTORY.read_text().replace(*change))
    with pytest.raises(ConfigError, match=text) as caught:
        load_hosts(path)
    assert str(path) in str(caught.value)


def test_texts_of_nodes_are_neither_markup_nor_commands_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    node = {"node": "a[/]", "state": ":bug:", "address": "\x1b[2J", "machine": "[red]arm"}
    _show({"bundles": [], "nodes": [node]})
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("a[/]", ":bug:", r"\x1b[2J", "[red]arm")), shown


def test_machines_behind_one_address_differ_in_their_port(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(INVENTORY.read_text().replace('"192.168.1.21"', '"192.168.1.20"\nansible_port = 2222'))
    assert [host.ssh(["true"])[5:7] for host in load_hosts(path).nodes][1] == ["-p", "2222"]


KEYSCAN = """#!/bin/sh
[ "$6" = 192.168.1.21 ] && exit 1
echo "[$6]:$4 $(cut -d' ' -f1,2 {key})"
"""


def test_keys_of_machines_are_added_only_if_confirmed_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed (Debian: apt-get install openssh-client)")
    key, programs = tmp_path / "key", tmp_path / "bin"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    programs.mkdir()
    (programs / "ssh-keyscan").write_text(KEYSCAN.format(key=f"{key}.pub"))
    (programs / "ssh-keyscan").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    inventory, known = tmp_path / "fleet.toml", tmp_path / ".ssh/known_hosts"
    text = INVENTORY.read_text().replace("[all.vars]", "[all.vars]\nansible_port = 2222")
    inventory.write_text(text)

    def trust(answer: str) -> tuple[int, str]:
        monkeypatch.setattr("builtins.input", lambda _: answer)
        return main(["fleet", "trust", str(inventory)]), "".join(capsys.readouterr())

    code, shown = trust("y")
    assert (code, "attic: no ssh server answers at [192.168.1.21]:2222" in shown) == (4, True), shown
    inventory.write_text(text.replace("192.168.1.21", "192.168.1.22"))
    code, shown = trust("")
    assert (code, known.exists(), shown.count("SHA256:")) == (1, False, 3)
    assert trust("y")[0] == 0
    assert [line.split()[0] for line in known.read_text().splitlines()] == [
        f"[192.168.1.{host}]:2222" for host in (10, 20, 22)
    ]
    assert "ssh knows every machine" in trust("")[1]


def test_the_example_is_what_both_readers_take() -> None:
    inventory = load_hosts(INVENTORY)
    assert [host.id for host in inventory.nodes] == ["kitchen", "attic"]
    assert inventory.aggregators[0].ssh(["true"]) == [
        "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", "pi@192.168.1.10", "sudo true"
    ]  # fmt: skip
    assert set(tomllib.loads(INVENTORY.read_text())) == {"all", "aggregators", "nodes"}
