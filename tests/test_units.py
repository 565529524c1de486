"""Units and playbook: checked by the tools that they are for, and the lines in them really started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_device.node import StudentModel

from benchmarks.pi.containers import SkippedError, check_machine
from nonn import __version__
from nonn.bundle import Bundle
from nonn.cli import main
from nonn.client import Client
from nonn.errors import CredentialsError
from nonn.files import sha256_file
from nonn.telemetry.systemd import Watchdog
from scripts.wheelhouse import write_list
from tests.fleets import members
from tests.serving import TIMEOUT_S, until, until_async
from tests.toys import SHAPE, WIDTH, toy_bundle
from tests.units import settings_of

ROOT = Path(__file__).parent.parent
PI, WEARABLE = ROOT / "devices/pi", ROOT / "devices/wearable"
UNITS = (PI / "nonn-device.service", PI / "nonn-aggregator.service", WEARABLE / "nonn-device.service")
PAIRED = (PI / "paired.conf", WEARABLE / "paired.conf")  # drop-ins of the units of devices
ANSIBLE = ROOT / ".venv-ansible"
ANSIBLE_CORE = "ansible-core==2.19.14"  # the last for Python 3.11


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("units") / "bundle", num_devices=2)


# systemd's own opinion.


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.parent.name}/{unit.name}")
def test_systemd_understands_every_line(unit: Any, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    copy = tmp_path / unit.name
    # Programs must exist when a unit is verified; the prefix is the only thing that is changed.
    program = re.compile(r"(/opt/nonn|%h/\.local/share/nonn)/bin/[a-z-]+")
    copy.write_text(program.sub("/bin/true", unit.read_text()))
    if unit.name == "nonn-device.service":
        for name, drop_in in (
            (unit.name, "paired.conf"),
            *([("nonn-board@.service", "board.conf")] if unit.parent == PI else []),
        ):
            (tmp_path / f"{name}.d").mkdir()
            (tmp_path / name).write_text(copy.read_text())
            (tmp_path / f"{name}.d" / drop_in).write_text(program.sub("/bin/true", (unit.parent / drop_in).read_text()))
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    scope = ["--user"] if unit.parent == WEARABLE else []
    verified = subprocess.run(
        ["systemd-analyze", *scope, "verify", "--man=no", copy], capture_output=True, text=True, env=environment
    )
    told = [line for line in verified.stderr.splitlines() if unit.name in line or "paired.conf" in line]
    assert (verified.returncode, told) == (0, [])
    if not scope:
        score = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--threshold=20", copy], capture_output=True, text=True
        )
        assert score.returncode == 0, score.stdout[-400:]  # exposure of 2.0 of 10 at most


def test_a_unit_limits_restarts_and_watches_its_process() -> None:
    for unit in UNITS:
        found = settings_of(unit)
        assert found["Type"] == ["notify"]
        assert found["Restart"] == ["on-failure"]
        assert int(found["WatchdogSec"][0]) >= 30
        assert int(found["LimitNOFILE"][0]) > 1024  # the default, which a few hundred idle connections would use up
        assert {"MemoryMax", "CPUWeight", "RestartSec", "NoNewPrivileges", "SystemCallFilter"} <= found.keys()
        assert "TMPDIR=/var/tmp" in found["Environment"][0]
        command = found["ExecStart"][0]
        assert "nonn-device" not in command or "--memory" in command.split()


def test_units_read_the_folder_of_certificates_itself_and_only_their_group_may(tmp_path: Path) -> None:
    """Copies of ``LoadCredential=`` stay as they were at the start: a revocation would need a restart."""
    for unit in UNITS:
        found = settings_of(unit)
        assert "LoadCredential" not in found
        assert "--tls %E/nonn/tls " in found["ExecStart"][0]
        assert found.get("SupplementaryGroups", ["nonn-tls"]) == ["nonn-tls"]
        assert ("SupplementaryGroups" in found) is (unit.parent == PI)
    if shutil.which("systemd-sysusers") is None or os.geteuid():
        pytest.skip("systemd-sysusers and systemd-tmpfiles as root (Debian: apt-get install systemd)")
    for kind in ("sysusers", "tmpfiles"):
        (tmp_path / f"etc/{kind}.d").mkdir(parents=True)
        shutil.copy(PI / f"nonn-tls.{kind}", tmp_path / f"etc/{kind}.d/nonn-tls.conf")
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).write_text("root:x:0:0::/root:/bin/sh\n" if name == "passwd" else "root:x:0:\n")
    folder = tmp_path / "etc/nonn/tls"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o750)  # as Ansible creates it
    board = tmp_path / "etc/nonn/boards/shelf"
    board.mkdir(parents=True)
    (board / "identity.pem").touch(0o600)
    for name in ("identity.pem", "ca.pem", "revoked.json"):
        (folder / name).touch(0o600)
    for command in (("systemd-sysusers",), ("systemd-tmpfiles", "--create")):
        done = subprocess.run([*command, f"--root={tmp_path}", "nonn-tls.conf"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    lines = (tmp_path / "etc/group").read_text().splitlines()
    group = next(int(line.split(":")[2]) for line in lines if line.startswith("nonn-tls:"))
    boards = ((board, 0o750), (board / "identity.pem", 0o640))
    for path, mode in ((folder, 0o750), *boards, *((folder / name, 0o640) for name in ("identity.pem", "ca.pem"))):
        stat = path.stat()
        assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (0, group, mode), path
    assert folder.parent.stat().st_mode & 0o777 == 0o755


# The lines in them, started as systemd would.


class Notified:
    """A notify socket, and what comes to it."""

    def __init__(self, folder: Any) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))

    def take(self, timeout_s: Any = TIMEOUT_S) -> Any:
        """The next message; None if there is none in time."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(4096).decode()
        except TimeoutError:
            return None

    def until(self, start: Any) -> Any:
        while (message := self.take()) is not None:
            if message.startswith(start):
                return message
        raise AssertionError(f"no {start}")

    def drain(self) -> None:
        while self.take(0.001) is not None:
            pass

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def started(
    unit: Any, folder: Any, tls: Any, variables: Any, watchdog_s: float = 1.0, drop_in: Any = None
) -> Iterator[Any]:
    """The unit's ExecStart with its environment, its specifiers filled in; and its notify socket."""
    folder.mkdir()
    found, notified = settings_of(unit) | (settings_of(drop_in) if drop_in else {}), Notified(folder)
    line = found["ExecStart"][-1]
    for specifier, value in (
        ("%E/nonn/tls", tls),
        ("%S", folder),
        ("%h/.local/state", folder),
        ("%h/.local/share/nonn/bin", "BIN"),
    ):
        line = line.replace(specifier, str(value))
    line = line.replace("/opt/nonn/bin", "BIN").replace("BIN", str(Path(sys.executable).parent))
    for name, value in variables.items():
        line = line.replace(f"${name}", value)
    assert not re.search(r"[%$]", line), line
    environment = dict(part.split("=") for part in found["Environment"][0].split())
    environment |= variables | {"NOTIFY_SOCKET": str(notified.path), "WATCHDOG_USEC": str(round(1e6 * watchdog_s))}
    environment["PATH"] = "/usr/bin:/bin"
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(shlex.split(line), stdout=subprocess.PIPE, stderr=log, env=environment) as child,
    ):
        try:
            yield child, notified
        finally:
            child.kill()
            notified.close()


def test_the_lines_of_all_units_make_a_cluster_and_systemd_hears_of_it(bundle: Bundle, tmp_path: Path) -> None:
    inventory = tmp_path / "fleet.toml"
    inventory.write_text('[aggregators.hosts.main]\nansible_host = "127.0.0.1"\n[nodes.hosts.a]\n[nodes.hosts.b]\n')
    assert main(["fleet", "init", str(inventory)]) == 0
    certs = tmp_path / "certs"
    # An option that is given twice counts the last time: free ports instead of fixed ones.
    options = {"NONN_BUNDLE": str(bundle.path), "NONN_OPTIONS": f"--port 0 --pair 2 --authority {certs}"}
    with contextlib.ExitStack() as stack:
        aggregator, told = stack.enter_context(started(UNITS[1], tmp_path / "m", certs / "aggregator/main", options))
        address = json.loads(aggregator.stdout.readline())["address"].replace("0.0.0.0", "127.0.0.1")
        assert told.until("READY=1").endswith("STATUS=serves at " + address.replace("127.0.0.1", "0.0.0.0"))
        options |= {"NONN_AGGREGATORS": address, "NONN_OPTIONS": "--port 0"}
        node, heard = stack.enter_context(started(UNITS[0], tmp_path / "a", certs / "node/a", options))
        assert heard.until("READY=1") == "READY=1\nSTATUS=asks for a student"
        assert "STATUS=student" in heard.until("READY=1")
        options["NONN_OPTIONS"] = ""
        wearable, _ = stack.enter_context(started(UNITS[2], tmp_path / "b", certs / "node/b", options))
        until((certs / "pairing.code").exists)
        options["NONN_CODE"] = (certs / "pairing.code").read_text()
        listens = re.search(r"valid for 600 s, at 0\.0\.0\.0:(\d+)", (tmp_path / "m/log").read_text())
        assert listens is not None
        paired = []
        for name, unit, drop_in, more in (("c", UNITS[0], PAIRED[0], " --port 0"), ("d", UNITS[2], PAIRED[1], "")):
            options["NONN_OPTIONS"] = f"--id {name} --pair-with 127.0.0.1:{listens[1]}{more}"
            paired.append(stack.enter_context(started(unit, tmp_path / name, None, options, drop_in=drop_in))[0])
        with Client(address, TIMEOUT_S, tls=certs / "client/operator") as client:
            until(lambda: members(client).keys() == {"a", "b", "c", "d"})
            assert client.infer(np.zeros((1, *SHAPE), np.uint8)).mask == 0b11
            heard.until("WATCHDOG=1")
            told.until("WATCHDOG=1")
            # A process that hangs is not fed; systemd would start it anew.
            node.send_signal(signal.SIGSTOP)
            heard.drain()
            assert heard.take(1.5) is None
            node.send_signal(signal.SIGCONT)
            heard.until("WATCHDOG=1")
            for child in (node, wearable, *paired, aggregator):
                child.send_signal(signal.SIGTERM)
                assert child.wait(TIMEOUT_S) == 0
            heard.until("STOPPING=1")


class Hanging:
    """A runtime that hangs when told to."""

    name = "hanging"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self, batch: Any) -> Any:
        assert self.go_on.wait(TIMEOUT_S)
        return np.zeros((len(batch), WIDTH), np.float32)


def test_a_unit_refuses_a_certificate_that_is_revoked_while_it_runs(bundle: Bundle, tmp_path: Path) -> None:
    inventory = tmp_path / "fleet.toml"
    inventory.write_text('[aggregators.hosts.main]\nansible_host = "127.0.0.1"\n[nodes.hosts.a]\n')
    assert main(["fleet", "init", str(inventory)]) == 0
    certs, tls = tmp_path / "certs", tmp_path / "etc/nonn/tls"
    shutil.copytree(certs / "aggregator/main", tls)  # what the unit reads, as the playbook copies it
    variables = {"NONN_BUNDLE": str(bundle.path), "NONN_OPTIONS": "--port 0"}
    with started(UNITS[1], tmp_path / "m", tls, variables) as (aggregator, _):
        address = json.loads(aggregator.stdout.readline())["address"].replace("0.0.0.0", "127.0.0.1")
        client = shutil.copytree(certs / "client/operator", tmp_path / "client")
        with Client(address, TIMEOUT_S, tls=client) as allowed:
            allowed.metadata()
            assert main(["certs", "revoke", "client", "operator", "--dir", str(certs)]) == 0
            copied = shutil.copy(certs / "revoked.json", tls / ".new")
            Path(copied).rename(tls / "revoked.json")

            def refused() -> bool:
                try:
                    allowed.metadata()
                except CredentialsError:
                    return True
                return False

            until(refused)
        assert aggregator.poll() is None


def test_the_watchdog_is_not_fed_while_the_student_hangs_though_the_loop_lives(bundle: Bundle, tmp_path: Path) -> None:
    notified, runtime = Notified(tmp_path), Hanging()

    async def scenario() -> None:
        environment = {"NOTIFY_SOCKET": str(notified.path), "WATCHDOG_USEC": "30000"}
        async with (
            StudentModel(bundle, 0, runtime, max_queue=1) as model,
            Watchdog(environment) as watchdog,
            watchdog.over(model.check, "runs"),
        ):
            await asyncio.to_thread(notified.until, "WATCHDOG=1")
            runtime.go_on.clear()
            await until_async(lambda: model._worker._waiting)
            await asyncio.to_thread(notified.drain)
            assert await asyncio.to_thread(notified.take, 0.3) is None
            runtime.go_on.set()
            await asyncio.to_thread(notified.until, "WATCHDOG=1")

    try:
        asyncio.run(scenario())
    finally:
        runtime.go_on.set()
        notified.close()


def test_the_watchdog_is_silent_where_it_is_not_asked_for(tmp_path: Path) -> None:
    async def scenario(environment: Any) -> None:
        async with Watchdog(environment) as watchdog:
            watchdog.ready("x")
            await asyncio.sleep(0)

    notified = Notified(tmp_path)
    asyncio.run(scenario({}))
    asyncio.run(scenario({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1000"}))
    assert notified.take(0.01) is None
    other = {"NOTIFY_SOCKET": str(notified.path), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    asyncio.run(scenario(other))
    assert [notified.take(), notified.take(), notified.take(0.05)] == ["READY=1\nSTATUS=x", "STOPPING=1", None]
    notified.close()


# The playbook.


@pytest.fixture(scope="session")
def ansible() -> Any:
    """``ansible-playbook`` of an environment that is kept between runs."""
    program = ANSIBLE / "bin/ansible-playbook"
    if not (ANSIBLE / ANSIBLE_CORE).exists():
        shutil.rmtree(ANSIBLE, ignore_errors=True)
        venv.create(ANSIBLE, with_pip=False, symlinks=True)
        command = [sys.executable, "-m", "pip", "--python", str(ANSIBLE / "bin/python"), "install", "-q", ANSIBLE_CORE]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"{ANSIBLE_CORE} cannot be installed: {made.stderr.strip().splitlines()[-1]}")
        (ANSIBLE / ANSIBLE_CORE).touch()

    def play(folder: Any, *arguments: Any) -> Any:
        environment = os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "home"), "LC_ALL": "C.UTF-8"}
        environment["ANSIBLE_PIPELINING"] = "true"  # one process a task rather than five
        # The runs of a test share the facts of its machine.
        environment |= {"ANSIBLE_GATHERING": "smart", "ANSIBLE_CACHE_PLUGIN": "jsonfile"}
        environment["ANSIBLE_CACHE_PLUGIN_CONNECTION"] = str(folder / "facts")
        return subprocess.run(
            [program, *arguments, PI / "site.yml"], capture_output=True, text=True, env=environment, cwd=folder
        )

    return play


def write_wheel(path: Path, **modules: str) -> None:
    """A wheel of nonn with its programs and a few modules: whether the real one is complete, test_dist.py checks."""
    info = path.name.rpartition("-py3")[0] + ".dist-info"
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    files = {f"nonn/{name}.py": text for name, text in modules.items()}
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: nonn\nVersion: {__version__}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(["[console_scripts]", *(f"{k} = {v}" for k, v in programs.items())]),
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


@pytest.mark.slow
def test_the_playbook_sets_up_a_device_and_a_second_run_changes_nothing(ansible: Any, tmp_path: Path) -> None:
    prefix = tmp_path / "card"
    (tmp_path / "fleet.toml").write_text(
        "[all.vars]\n"
        'ansible_connection = "local"\n'
        f'ansible_python_interpreter = "{sys.executable}"\n'
        f'nonn_root = "{prefix}"\nnonn_python = "{sys.executable}"\n'
        'nonn_systemd = false\nnonn_become = false\nnonn_packages = ["--no-deps", "nonn"]\n'
        'nonn_certs = "certs"\nnonn_wheelhouse = "wheelhouse"\n'
        '[aggregators.hosts.main]\nansible_host = "192.168.1.10"\n'
        '[nodes.hosts.kitchen]\nnonn_options = "--student 1"\n'
    )
    wheelhouse, stamp = tmp_path / "wheelhouse", prefix / "opt/nonn/installed.json"
    wheelhouse.mkdir()
    wheel = wheelhouse / f"nonn-{__version__}-py3-none-any.whl"
    write_wheel(wheel, __init__="")
    listed = {f"{sys.version_info[0]}.{sys.version_info[1]}": {"node": [wheel.name]}}
    write_list(wheelhouse, listed)
    assert main(["fleet", "init", str(tmp_path / "fleet.toml")]) == 0
    # An installation that fails in the middle has no stamp, so the next run repeats it.
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-100])
    kitchen = ("-i", "fleet.toml", "--limit", "kitchen")
    broken = ansible(tmp_path, *kitchen, "--start-at-task", "Version of Python")
    assert broken.returncode, broken.stdout[-2000:]
    assert "Packages, from these wheels only" in broken.stdout
    assert not stamp.exists()
    # A wheel that was built again is installed, although the version is the same. The test itself installs the
    # first one, as the playbook would have done, had it been whole.
    wheel.write_bytes(whole)
    pip = [
        str(prefix / "opt/nonn/bin/python"),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-index",
    ]
    subprocess.run([*pip, wheel], check=True)
    earlier = {"packages": ["--no-deps", "nonn"], "wheels": {wheel.name: sha256_file(wheel)}}
    stamp.write_text(json.dumps(earlier))
    write_wheel(wheel, __init__="", built_again="")
    write_list(wheelhouse, listed)
    first = ansible(tmp_path, *kitchen)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr
    assert list(prefix.glob("opt/nonn/lib/python*/site-packages/nonn/built_again.py"))
    assert json.loads(stamp.read_text()) == earlier | {"wheels": {wheel.name: sha256_file(wheel)}}
    assert (prefix / "etc/nonn/device.env").read_text() == (
        "NONN_AGGREGATORS=192.168.1.10:50051\nNONN_OPTIONS=--student 1\n"
    )
    identity = prefix / "etc/nonn/tls/identity.pem"
    assert identity.read_bytes() == (tmp_path / "certs/node/kitchen/identity.pem").read_bytes()
    assert identity.stat().st_mode & 0o777 == 0o640
    assert (prefix / "etc/sysusers.d/nonn-tls.conf").read_bytes() == (PI / "nonn-tls.sysusers").read_bytes()
    assert (prefix / "etc/tmpfiles.d/nonn-tls.conf").read_bytes() == (PI / "nonn-tls.tmpfiles").read_bytes()
    assert (prefix / "etc/systemd/system/nonn-device.service").read_bytes() == UNITS[0].read_bytes()
    assert (prefix / "opt/nonn/bin/nonn-device").exists()
    assert not (prefix / "opt/nonn/wheelhouse").exists()
    again = ansible(tmp_path, *kitchen)
    assert re.search(r"kitchen +: ok=\d+ +changed=0 ", again.stdout), again.stdout[-2000:]


def test_containers_are_skipped_with_the_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SkippedError, match=r"no systemd-nspawn, .*apt-get install systemd-container mmdebstrap"):
        check_machine()
