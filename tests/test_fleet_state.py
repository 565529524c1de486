"""What an aggregator remembers between starts, whatever happens to the process or the files."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nonn.aggregator.batching import BatchConfig
from nonn.aggregator.events import StateEvent
from nonn.aggregator.membership.leases import JoinRequest
from nonn.aggregator.membership.options import JoiningOptions
from nonn.aggregator.monitoring.options import ObservingOptions
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.screening import QUARANTINED
from nonn.bundle import Bundle
from nonn.cli import main
from nonn.documents import from_json, to_json
from nonn.errors import BundleError, DataError
from nonn.fleet.bundles import Bundles
from nonn.fleet.rollout import Rollout
from nonn.fleet.served import ServeOptions
from nonn.fleet.state import StateFolder, StateRecord
from nonn.fleet.status import FleetMessage, FleetStatus
from tests.serving import run_here, until_async
from tests.toys import toy_bundle

NUM_DEVICES = 2


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("other") / "bundle", num_devices=3)


@pytest.fixture
def options(tmp_path: Path) -> ServeOptions:
    """Of a cluster that nodes join."""
    token = tmp_path / "token"
    token.write_text("a-token-for-those-who-join")
    return ServeOptions(
        inventory=None,
        joining=JoiningOptions(joins=True, join_token_file=token),
        observing=ObservingOptions(),
        policy=PolicyConfig(),
        batching=BatchConfig(),
    )


def test_a_bundle_says_what_it_is_from_the_moment_at_which_it_is_served(
    bundle: Bundle, other: Bundle, options: ServeOptions, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path / "state")
    state.first(bundle.path)

    async def scenario() -> None:
        bundles = Bundles(state, bundle, options)
        async with bundles.running(lambda: None):
            assert bundles.model.metadata().versions == [bundle.hash[:12]]
            await bundles.open_other(state.take(other.path))
            recorded = bundles.switch()
            assert bundles.model.metadata().versions == [other.hash[:12]]
            await recorded
            assert bundles.model.metadata().versions == [other.hash[:12]]

    asyncio.run(scenario())


def test_a_quarantine_is_kept_over_a_restart_of_the_aggregator(
    bundle: Bundle, options: ServeOptions, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path / "state")
    state.first(bundle.path)

    async def scenario() -> None:
        bundles = Bundles(state, bundle, options)
        async with bundles.running(lambda: None):
            aggregator = bundles.served.aggregator
            aggregator.policy.add("liar", 0)
            assert aggregator.policy.on_contradiction("liar", 0.0)
            aggregator.observers.on_state(StateEvent(0.0, "liar", "up", "out", QUARANTINED))
            await until_async(lambda: bool(state.read().quarantined))
        policy = Bundles(state, bundle, options).served.aggregator.policy
        policy.add("liar", 0)
        policy.add("honest", 1)
        assert (policy.state("liar"), policy.state("honest")) == ("out", "up")
        assert policy.quarantined() == {"liar": 1}

    asyncio.run(scenario())


def test_status_and_messages_of_a_fleet_keep_their_json(bundle: Bundle, options: ServeOptions, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    state.first(bundle.path)

    async def scenario() -> tuple[FleetStatus, FleetMessage]:
        rollout = Rollout(Bundles(state, bundle, options))
        request = JoinRequest(node="b", instance="i", fingerprint="f", address="h:1", version="1", bundle=bundle.hash)
        rollout.served.servicer.membership.register(request, 0.0)
        drained = await rollout.drain("a", 0.0, undo=False, absent=True)
        return rollout.status(), drained

    status, drained = asyncio.run(scenario())
    full = rf'"accuracy": 0\.0, "accuracy_of_all": {bundle.table.accuracy[-1]}'
    assert re.fullmatch(
        rf'{{"bundles": \[{{"bundle": "{bundle.hash}", "experiment": "{bundle.manifest.experiment}", "served": true, '
        rf'"students": 0, "devices": {bundle.num_devices}, {full}}}\], '
        r'"nodes": \[{"node": "a", "state": "drained"}, '
        rf'{{"node": "b", "bundle": "{bundle.hash}", "student": \d, "state": "fetching", "address": "h:1", '
        r'"version": "1", "runtime": "", "machine": "", "rss_bytes": 0}\], "previous": ""}',
        json.dumps(to_json(status)),
    )
    assert from_json(FleetStatus, to_json(status), "status") == status
    assert json.dumps(to_json(drained)) == (
        '{"event": "done", "text": "node a is drained; it is not in the cluster now"}'
    )
    moved = FleetMessage("move", "node a to bundle 0", nodes=("a",))
    assert json.dumps(to_json(moved)) == '{"event": "move", "text": "node a to bundle 0", "nodes": ["a"]}'


def test_what_was_written_is_read(bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    assert state.read() == StateRecord()
    assert state.first(bundle.path).hash == bundle.hash
    state.served(state.take(other.path).hash, bundle.hash)
    state.drained(["a", "b"])
    state.quarantined({"c": 2})
    record = StateRecord(current=other.hash, previous=bundle.hash, drained=("a", "b"), quarantined={"c": 2})
    assert StateFolder(tmp_path).read() == record
    state.quarantined({})
    assert "quarantined" not in json.loads((tmp_path / "state.json").read_text())  # versions before this one read it
    assert state.first(bundle.path).hash == other.hash  # whatever the command says


def damaged(change: Callable[[bytes], bytes]) -> Any:
    return pytest.param(change, id=change.__name__)


def empty(raw: bytes) -> bytes:
    return b""


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def zeros(raw: bytes) -> bytes:
    return bytes(len(raw))


def noise(raw: bytes) -> bytes:
    return random.Random(0).randbytes(len(raw))


def one_digit(raw: bytes) -> bytes:
    text = raw.decode()
    at = text.index('"current": "') + len('"current": "')
    return (text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]).encode()


def a_list(raw: bytes) -> bytes:
    return b"[]"


def nested(raw: bytes) -> bytes:
    return b"[" * 100_000


@pytest.mark.parametrize("change", list(map(damaged, (empty, cut, zeros, noise, one_digit, a_list, nested))))
def test_a_damaged_record_is_refused_with_the_remedy(
    bundle: Bundle, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    state = StateFolder(tmp_path)
    state.first(bundle.path)
    document = tmp_path / "state.json"
    document.write_bytes(change(document.read_bytes()))
    token = tmp_path / "token"
    token.write_text("a-token-for-those-who-join")
    with pytest.raises(DataError, match=r"state\.json: damaged \(.*\); restore it from a backup, or delete") as caught:
        state.first(bundle.path)
    assert bundle.hash in str(caught.value)
    if change is empty:
        ended = run_here(main, "serve", bundle.path, "--joins", "--join-token-file", token, "--state", tmp_path)
        assert (ended.returncode, "state.json: damaged" in ended.stderr) == (3, True)
        assert "Traceback" not in ended.stderr
    document.unlink()
    assert state.first(bundle.path).hash == bundle.hash


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"\xff\xfe", b"../../etc"])
@pytest.mark.parametrize("name", ["current", "previous"])
def test_a_damaged_file_of_an_older_version_is_refused(
    bundle: Bundle, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: not the hash of a bundle; restore"):
        StateFolder(tmp_path).first(bundle.path)


def test_a_folder_of_an_older_version_is_taken_over(bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    for name, taken in (("current", bundle), ("previous", other)):
        (tmp_path / name).write_text(f"{state.take(taken.path).hash}\n")
    assert state.first(other.path).hash == bundle.hash
    assert {path.name for path in tmp_path.iterdir()} == {"bundles", "state.json"}
    assert state.read() == StateRecord(current=bundle.hash, previous=other.hash)


def test_a_served_bundle_that_is_missing_is_an_error_with_the_remedy(bundle: Bundle, tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.first(bundle.path)
    shutil.rmtree(tmp_path / "bundles" / bundle.hash)
    with pytest.raises(BundleError, match=r"contains no bundle .*; or delete .*state\.json to begin with"):
        state.first(bundle.path)


def test_a_bundle_that_a_killed_process_has_half_deleted_is_copied_again(
    bundle: Bundle, other: Bundle, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path)
    state.first(bundle.path)
    (state.take(other.path).path / "students/student-0.onnx").unlink()
    assert state.take(other.path).hash == state.load(other.hash).hash == other.hash


CHILD = """
import sys
from pathlib import Path
from nonn.fleet.state import StateFolder

state, bundles = StateFolder(Path(sys.argv[1])), [Path(path) for path in sys.argv[2:]]
print("ready", flush=True)
while True:  # as a push and a rollback do, one after the other
    for new in bundles:
        record = state.read()
        taken = state.take(new).hash
        if taken != record.current:
            state.served(taken, record.current)
        state.drained([] if record.drained else ["a"])
"""


def test_sigkill_at_any_point_loses_neither_the_served_bundle_nor_the_one_to_roll_back_to(
    bundle: Bundle, other: Bundle, tmp_path: Path
) -> None:
    third = toy_bundle(tmp_path / "third", num_devices=4)
    paths, folder, rng, seen = [bundle.path, other.path, third.path], tmp_path / "state", random.Random(1), set()
    state = StateFolder(folder)
    state.first(bundle.path)
    state.served(state.take(other.path).hash, bundle.hash)
    for _ in range(15):
        command = [sys.executable, "-c", CHILD, str(folder), *map(str, paths)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(rng.uniform(0, 0.25))
            child.send_signal(signal.SIGKILL)
        record = state.read()
        assert record.current != record.previous
        for name in (record.current, record.previous):
            assert state.load(name).hash == name
        seen.add(record.current)
    assert len(seen) > 1  # it did something in between


def test_the_document_is_plain_json(bundle: Bundle, tmp_path: Path) -> None:
    StateFolder(tmp_path).first(bundle.path)
    found = json.loads((tmp_path / "state.json").read_text())
    assert found.keys() == {"schema", "current", "previous", "drained", "sha256"}
