"""SIGKILL at random lines of every write of state, and what the next start finds.

``python -m benchmarks.kills`` is a separate process without threads, since it forks. A child changes something on the
disk and kills itself after a random number of executed lines of nonn. The parent then reads what the next process would
read: it must be the state before or after the change, and the change must succeed when it is repeated:

============  =========================================================================
``state``     what an aggregator serves, its drained nodes, and the bundles that it deletes
``take``      a bundle that is pushed to an aggregator
``bundle``    a bundle that replaces another one in its folder
``store``     a student that a device fetches while it holds another one
``certs``     a certificate that is issued, and one that is revoked
``files``     an inventory and a policy
============  =========================================================================

Limit: a kill leaves what was written to the kernel; a power cut may also lose what was not synced. Tests of
``nonn.files`` check that contents and names are synced in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from nonn_device.artifacts import Artifact, Store

from benchmarks.section import Figures, Ground, Section
from nonn.aggregator.inventory import Node, load_inventory, write_inventory
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.policy.file import load_policy, write_policy
from nonn.bundle import MANIFEST, Bundle, load_bundle
from nonn.errors import ConfigError
from nonn.files import sha256_file
from nonn.fleet.state import StateFolder, StateRecord
from nonn.security.authority import Authority
from nonn.security.tls import IDENTITY
from tests.toys import toy_bundle

__all__ = ["SECTIONS", "Step", "kill_at_random", "steps"]

PACKAGES = ("/nonn/", "/nonn_device/")


@dataclass(frozen=True)
class Step:
    """A change of state on the disk.

    Attributes:
        prepare: writes the state before it into a folder.
        change: changes it.
        check: reads it as the next process does; raises if it is neither the state before nor that after the change.
    """

    prepare: Callable[[Path], object]
    change: Callable[[Path], object]
    check: Callable[[Path], object]


def steps(old: Bundle, new: Bundle) -> dict[str, Step]:
    """All changes, from one bundle to another."""
    before, after = StateRecord(current=old.hash), StateRecord(current=new.hash, previous=old.hash, drained=("node-3",))

    def held(folder: Path) -> None:
        state = StateFolder(folder)
        state.take(old.path)
        state.write(before)

    def serve(folder: Path) -> None:
        state = StateFolder(folder)
        state.take(new.path)
        state.served(new.hash, old.hash)
        state.drained(after.drained)

    def served(folder: Path) -> None:
        record = StateFolder(folder).read()
        assert record in (before, StateRecord(current=new.hash, previous=old.hash), after), record
        assert StateFolder(folder).first(old.path).hash == record.current

    def take(folder: Path) -> None:
        StateFolder(folder).take(new.path)

    def took(folder: Path) -> None:
        assert StateFolder(folder).first(new.path).hash == old.hash

    def replace(folder: Path) -> None:
        toy_bundle(folder / "bundle", 2, width=5)

    def fetch(folder: Path) -> None:
        _fetch(folder, new)

    def fetched(folder: Path) -> None:
        assert Store(folder).held() in ((old.hash, 0), (new.hash, 0)), Store(folder).held()

    return {
        "state": Step(held, serve, served),
        "take": Step(held, take, took),
        "bundle": Step(
            lambda folder: shutil.copytree(old.path, folder / "bundle"),
            replace,
            lambda folder: load_bundle(folder / "bundle"),
        ),
        "store": Step(lambda folder: _fetch(folder, old), fetch, fetched),
        "certs": Step(_authority, _certify, _certified),
        "files": Step(lambda folder: _configure(folder, 1), lambda folder: _configure(folder, 2), _configured),
    }


def _fetch(folder: Path, bundle: Bundle) -> None:
    """A device fetches student 0."""
    names = (MANIFEST, bundle.manifest.students[0].file)
    files = [(name, bundle.path / name) for name in names]
    artifacts = [Artifact(name, sha256_file(path), path.stat().st_size) for name, path in files]

    async def read(name: str, offset: int) -> AsyncGenerator[bytes, None]:
        content = (bundle.path / name).read_bytes()[offset:]
        for at in range(0, len(content), 1000):
            yield content[at : at + 1000]

    asyncio.run(Store(folder).fetch(bundle.hash, 0, artifacts, read))


def _authority(folder: Path) -> None:
    authority = Authority.create(folder / "certs")
    for name in ("first", "second"):
        authority.issue("node", name)


def _certify(folder: Path) -> None:
    authority = Authority(folder / "certs")
    authority.issue("node", f"third-{os.getpid()}")
    with contextlib.suppress(ConfigError):  # it was revoked before the kill
        authority.revoke("node", "first")


def _certified(folder: Path) -> None:
    """Every certificate that has its final name is in the index, which has lost none."""
    authority = Authority(folder / "certs")
    assert {"first", "second"} <= {entry.id for entry in authority.issued}
    known = {entry.sha256 for entry in authority.issued}
    for file in (folder / "certs" / "node").glob(f"[!.]*/{IDENTITY}"):
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        assert certificate.fingerprint(hashes.SHA256()).hex() in known, file


def _configure(folder: Path, number: int) -> None:
    nodes = [Node(id=f"node-{i}", address=f"127.0.0.1:{i + 1}", student=i) for i in range(number)]
    write_inventory(folder / "nodes.toml", nodes)
    write_policy(folder / "policy.toml", PolicyConfig(quorum=number))


def _configured(folder: Path) -> None:
    assert len(load_inventory(folder / "nodes.toml", 2)) in (1, 2)
    assert load_policy(folder / "policy.toml").quorum in (1, 2)


def kill_at_random(step: Step, folder: Path, times: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kills a change of state at random lines.

    Args:
        step: the change.
        folder: folder for its states.
        times: how often.
        rng: chooses the lines.

    Returns:
        Number of lines that the change executes, and what was found wrong.
    """
    step.prepare(folder / "before")
    total, wrong = 0, list[str]()
    for number in range(times + 1):
        state = shutil.copytree(folder / "before", folder / "now", symlinks=True)
        last = rng.randrange(1, total + 1) if number else 0
        lines, status = _child(step, state, last)
        try:
            if number == 0:
                total = lines
            elif not os.WIFSIGNALED(status):
                # The change ends sooner here: it is another process, and sets have another order.
                assert os.waitstatus_to_exitcode(status) == 0, "the change fails"
            step.check(state)
            step.change(state)
            step.check(state)
        except Exception as exc:
            wrong.append(f"line {last} of {total}: {type(exc).__name__}: {exc}")
        shutil.rmtree(state)
    return total, wrong


def _child(step: Step, state: Path, last: int) -> tuple[int, int]:
    """Makes the change in a child that kills itself at its ``last``-th line; 0 never.

    Returns:
        Number of lines executed if it was not killed, and its wait status.
    """
    reader, writer = os.pipe()
    gc.collect()
    if pid := os.fork():
        os.close(writer)
        with os.fdopen(reader) as file:
            lines = int(file.read() or 0)
        return lines, os.waitpid(pid, 0)[1]
    gc.disable()  # no finaliser of an object whose thread exists in the parent only, such as a channel's
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        if not any(package in frame.f_code.co_filename for package in PACKAGES):
            return None
        count += event == "line"
        if last and count >= last:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        step.change(state)
        sys.settrace(None)
        os.write(writer, str(count).encode())
    except BaseException:
        os._exit(1)
    os._exit(0)


def _kills(ground: Ground) -> Figures:
    command = [sys.executable, "-m", "benchmarks.kills", "--times", str(ground.args.kills)]
    done = subprocess.run([*command, "--seed", str(ground.args.seed)], stdout=subprocess.PIPE, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


SECTIONS = (
    Section(
        "kills",
        _kills,
        {
            "a kill at any line of a write leaves the state before or after it": lambda f: (
                not f["kills_wrong"] and min(f["kills_lines"].values()) > 0
            )
        },
    ),
)


def main() -> None:
    """Kills every step and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=40, help="kills of each step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines, wrong, rng = dict[str, int](), list[str](), random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="nonn-kills-") as folder:
        old, new = (toy_bundle(Path(folder) / f"bundle-{width}", 2, width=width) for width in (4, 5))
        for name, step in steps(old, new).items():
            lines[name], found = kill_at_random(step, Path(folder) / name, args.times, rng)
            wrong += [f"{name}: {text}" for text in found]
    print(json.dumps({"kills": args.times * len(lines), "kills_lines": lines, "kills_wrong": wrong}))


if __name__ == "__main__":
    main()
