"""``make pi``: from boxed Pi to answering cluster, in Debian containers with systemd as their first process.

Three machines of systemd-nspawn on a bridge, an aggregator and two nodes, are set up as ``docs/pi.md`` says: account
and ssh key, ``nonn fleet init`` and ``trust``, the playbook over ssh. Then they serve under steady load. Written to
benchmarks/results/pi.json:

- ``playbook``: seconds and changed tasks of three runs. In the first, pip is killed on one node while it installs; the
  second ends that installation; the third must change nothing.
- ``faults``: for a SIGKILL, a SIGSTOP that only the watchdog ends, and a reboot, each of one node: seconds until both
  nodes answer again. systemd must report the restart, and the watchdog its time-out.
- ``fleet``: seconds of ``push``, ``drain`` with ``--undo``, and ``rollback``; the lowest stated accuracy meanwhile must
  keep the floor.
- ``requests`` and ``lost`` of the whole time. A lost request is an error.

Needs root, and on Debian: apt-get install systemd-container mmdebstrap openssh-client iproute2. If something is missing
or forbidden here, it prints the reason and ends without writing. Mounts, network and processes are in namespaces and
end with it; images and wheels are kept in ``--folder``. Limit: the containers share this machine's kernel, so they say
nothing about memory limits, radio or cards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nonn.bundle import Bundle
from nonn.client import Client
from nonn.errors import NonnError
from nonn.files import write_json
from nonn.provenance import code_version, machine
from tests.toys import toy_bundle

HERE = Path(__file__).resolve().parent.parent
RESULT = HERE / "benchmarks" / "results" / "pi.json"
DEBIAN = "bookworm"
PACKAGES = "systemd,systemd-sysv,dbus,openssh-server,python3,python3-venv,sudo,iproute2,procps"  # a Pi OS has them
PROGRAMS = ("systemd-nspawn", "mmdebstrap", "ssh-keyscan", "unshare", "ip")
ANSIBLE = "ansible-core==2.19.14"  # the last for Python 3.11
BRIDGE, NETWORK = "nonn-pi", "10.99.7."
AGGREGATOR, NODES = "main", ("kitchen", "attic")
UNIT = "nonn-device"
WAIT_S = 300.0  # for a machine, or for nodes to answer
PAUSE_S = 0.1  # between requests
INVENTORY = """\
[all.vars]
ansible_user = "pi"
nonn_certs = "certs"
nonn_wheelhouse = "wheelhouse"

[aggregators.hosts.main]
ansible_host = "{main}"
nonn_bundle = "bundle"

[nodes.hosts.kitchen]
ansible_host = "{kitchen}"

[nodes.hosts.attic]
ansible_host = "{attic}"
"""
BOOT = 'while systemd-nspawn "$@"; [ $? = 133 ]; do :; done'  # 133: it wants to be booted again
# Ends pip on a node as soon as it has written its first package.
KILL_PIP = (
    "until [ -d /opt/nonn/lib/python3.11/site-packages/numpy ]; do sleep 0.05; done; "
    "kill -9 $(pgrep -f '^/opt/nonn/bin/python -m pip install')"
)


class SkippedError(Exception):
    """This machine cannot run it; the message has the reason and a remedy."""


def main() -> None:
    """Prepares images and wheels, then runs the machines in namespaces of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE / "build" / "pi", help="default: %(default)s")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.inside:
        run_inside(folder)
        return
    try:
        check_machine()
        prepare(folder)
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        inside = [sys.executable, "-m", "benchmarks.pi", "--folder", str(folder), "--inside"]
        code = subprocess.run([*command, *inside], cwd=HERE).returncode
    except SkippedError as exc:
        print(f"skipped: {exc}")
        return
    finally:
        for group in groups():
            _remove_groups(group)
    sys.exit(code)


def check_machine() -> None:
    """Checks what needs no download.

    Raises:
        SkippedError: not root, a program is missing, or the kernel refuses a bridge in a new network.
    """
    if os.geteuid():
        raise SkippedError("needs root, to boot containers")
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        raise SkippedError(
            f"no {', '.join(missing)}; apt-get install systemd-container mmdebstrap openssh-client iproute2"
        )
    bridge = ["unshare", "--net", "--pid", "--fork", "ip", "link", "add", BRIDGE, "type", "bridge"]
    made = subprocess.run(bridge, capture_output=True, text=True)
    if made.returncode:
        raise SkippedError(f"the kernel makes no bridge in a network of its own: {made.stderr.strip()}")
    if not groups():
        raise SkippedError("no control groups at /sys/fs/cgroup, which systemd needs")


def prepare(folder: Path) -> None:
    """Everything that needs the Internet: the image, the wheels, Ansible.

    Raises:
        SkippedError: the image cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, ansible = folder / "base", folder / "ansible"
    if not (base / "done").exists():
        shutil.rmtree(base, ignore_errors=True)
        options = ["--variant=minbase", f"--include={PACKAGES}"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
        made = subprocess.run(["mmdebstrap", "--quiet", *options, DEBIAN, base], stderr=subprocess.PIPE, text=True)
        if made.returncode:
            raise SkippedError(f"mmdebstrap cannot make the image: {made.stderr.strip().splitlines()[-1]}")
        (base / "done").touch()
    if not (ansible / ANSIBLE).exists():
        shutil.rmtree(ansible, ignore_errors=True)
        venv.create(ansible, with_pip=True, symlinks=True)
        subprocess.run([ansible / "bin/python", "-m", "pip", "install", "--quiet", ANSIBLE], check=True)
        (ansible / ANSIBLE).touch()
    shutil.rmtree(folder / "fleet", ignore_errors=True)
    (folder / "fleet").mkdir()
    collect: list[str | Path] = [
        sys.executable,
        "scripts/wheelhouse.py",
        folder / "fleet" / "wheelhouse",
        "--python",
        "3.11",
    ]
    subprocess.run(
        [*collect, "--machine", platform.machine(), "--extra", "serve"], check=True, cwd=HERE, stderr=subprocess.DEVNULL
    )


def groups() -> list[Path]:
    """For each hierarchy of control groups that systemd uses: the folder for those of the machines."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kind, path = line.split(":", 2)
        tops = {"name=systemd": ("systemd",), "": ("unified", ".")}.get(kind, ())
        tree = [Path("/sys/fs/cgroup", top) for top in tops if Path("/sys/fs/cgroup", top, "cgroup.procs").exists()]
        found += [top / path.lstrip("/") / BRIDGE for top in tree[:1]]
    return found


def _remove_groups(group: Path) -> None:
    for path, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):  # a process of it is ending
            Path(path).rmdir()


class Machine:
    """One container.

    Args:
        folder: of the command.
        name: host name and id in the inventory.
        number: last part of the address.
    """

    def __init__(self, folder: Path, name: str, number: int) -> None:
        self.name, self.address, self.root = name, f"{NETWORK}{number}", folder / "machines" / name
        subprocess.run(["cp", "--archive", "--reflink=auto", folder / "base", self.root], check=True)
        (self.root / "etc/hostname").write_text(f"{name}\n")
        (self.root / "etc/machine-id").write_text("")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        network = f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\n"
        (self.root / "etc/systemd/network/10-host0.network").write_text(network)
        # What devices/pi/user-data sets up on a card.
        script = (
            "useradd --create-home --shell /bin/bash pi && install -d -o pi -m 700 /home/pi/.ssh && "
            "install -o pi -m 600 /tmp/key /home/pi/.ssh/authorized_keys && "
            "echo 'pi ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/pi && systemctl --quiet enable systemd-networkd && "
            "rm -f /etc/ssh/ssh_host_* && ssh-keygen -q -A"
        )
        shutil.copy(Path("~/.ssh/id_ed25519.pub").expanduser(), self.root / "tmp/key")
        subprocess.run(["chroot", self.root, "sh", "-c", script], check=True, stderr=subprocess.DEVNULL)
        self._log = folder / f"{name}.log"
        self._child: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Boots it in a control group of its own; a reboot from inside boots it again."""
        enter = [f'mkdir -p "{group}/{self.name}"; echo 0 > "{group}/{self.name}/cgroup.procs"' for group in groups()]
        options = [f"--directory={self.root}", f"--machine=nonn-{self.name}", f"--network-bridge={BRIDGE}"]
        options += ["--boot", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off"]
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                ["sh", "-c", f"{'; '.join(enter)}; {BOOT}", "sh", *options],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def await_ssh(self) -> None:
        """Returns when its ssh server answers.

        Raises:
            SkippedError: systemd does not start in a container here.
        """
        deadline = time.monotonic() + WAIT_S
        while subprocess.run(["ssh-keyscan", "-T", "2", self.address], capture_output=True).stdout == b"":
            assert self._child is not None
            if self._child.poll() is not None or time.monotonic() > deadline:
                last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                raise SkippedError(f"systemd-nspawn does not boot here: {last}; the log is {self._log}")
            time.sleep(0.2)

    def ssh(self, command: str) -> list[str]:
        """The command that runs a line of shell on it as root."""
        return ["ssh", "-o", "BatchMode=yes", f"pi@{self.address}", shlex.join(["sudo", "sh", "-c", command])]

    def sudo(self, command: str, *, check: bool = True) -> str:
        """Standard output of a command that root runs on it."""
        done = subprocess.run(self.ssh(command), stdout=subprocess.PIPE, text=True)
        assert not check or done.returncode == 0, f"{self.name}: {command}: exit code {done.returncode}"
        return done.stdout.strip()

    def power_off(self) -> None:
        """Ends it; idempotent."""
        if self._child is not None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


def run_inside(folder: Path) -> None:
    """Sets up the network, boots the machines, measures and writes the result."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", f"{NETWORK}1/24", "dev", BRIDGE], check=True)
    subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)  # systemd-nspawn keeps state there
    keys = Path("~/.ssh").expanduser()  # hidden by an empty one, so that the user's file of known hosts stays as it is
    keys.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", keys], check=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_ed25519"], check=True)
    shutil.rmtree(folder / "machines", ignore_errors=True)
    (folder / "machines").mkdir()
    machines = {name: Machine(folder, name, 10 + i) for i, name in enumerate((AGGREGATOR, *NODES))}
    try:
        for each in machines.values():
            each.boot()
        for each in machines.values():
            each.await_ssh()
        print("booted", flush=True)
        result = measure(folder, machines)
    except SkippedError as exc:
        print(f"skipped: {exc}")
        return
    finally:
        for each in machines.values():
            each.power_off()
        shutil.rmtree(folder / "machines")
    write_json(
        RESULT,
        {
            "command": "python -m benchmarks.pi",
            "system": DEBIAN,
            **result,
            "machine": machine(),
            "code_version": code_version(),
        },
    )
    print(f"written to {RESULT}")


def measure(folder: Path, machines: dict[str, Machine]) -> dict[str, Any]:
    """Installs, serves and breaks; the figures of the result."""
    fleet = folder / "fleet"
    old, new = toy_bundle(fleet / "bundle", 2), toy_bundle(fleet / "new", 2, width=5)
    (fleet / "fleet.toml").write_text(INVENTORY.format(**{name: each.address for name, each in machines.items()}))
    nonn(fleet, "init", "fleet.toml")
    nonn(fleet, "trust", "fleet.toml", "--yes")
    kitchen, attic = (machines[name] for name in NODES)
    found: dict[str, Any] = {"playbook": [play(folder, kitchen), play(folder), play(folder)]}
    assert found["playbook"][-1]["changed"] == 0, "a further run of the playbook changes something"
    floor = min(bundle.accuracy({device}) for bundle in (old, new) for device in range(2))
    tls = fleet / "certs" / "client" / "operator"
    with Client(f"{machines[AGGREGATOR].address}:50051", 5.0, tls=tls) as client, load(client, old) as asked:
        asked.until(2)
        found["faults"] = {
            "kill": fault(asked, kitchen, f"systemctl kill --kill-whom=main -s KILL {UNIT}"),
            "stop": fault(asked, kitchen, f"systemctl kill --kill-whom=main -s STOP {UNIT}"),
            "reboot": fault(asked, attic, "systemctl reboot"),
        }
        assert kitchen.sudo(f"systemctl show --value -p NRestarts {UNIT}") == "2"
        assert "Watchdog timeout" in kitchen.sudo(f"journalctl --no-pager -u {UNIT}")
        asked.lowest = 1.0
        where = ("--inventory", "fleet.toml", "--floor", f"{floor:.4f}")
        found["fleet"] = {"floor": floor}
        for name, wanted, actions in (
            ("push", new, [("push", "new", *where)]),
            ("drain", new, [("drain", attic.name, *where), ("drain", attic.name, "--undo", "--inventory", where[1])]),
            ("rollback", old, [("rollback", *where)]),
        ):
            begun = time.monotonic()
            for action in actions:
                nonn(fleet, *action)
                if action[:1] == ("drain",) and "--undo" not in action:
                    asked.until(1)
            asked.until(2, wanted.hash)
            found["fleet"][f"{name}_s"] = round(time.monotonic() - begun, 1)
            print(f"{name}: {found['fleet'][f'{name}_s']} s", flush=True)
        found["fleet"]["lowest_accuracy"] = asked.lowest
    assert asked.lowest >= floor, f"an answer of accuracy {asked.lowest:.3f}, below the floor of {floor:.3f}"
    assert not asked.lost, f"{len(asked.lost)} requests failed: {asked.lost[0]}"
    return {**found, "requests": asked.requests, "lost": len(asked.lost)}


def nonn(folder: Path, *arguments: str) -> None:
    """Runs ``nonn fleet`` as an operator does."""
    subprocess.run([sys.executable, "-m", "nonn", "fleet", *arguments], check=True, cwd=folder)


def play(folder: Path, interrupted: Machine | None = None) -> dict[str, Any]:
    """Runs the playbook.

    Args:
        folder: of the command.
        interrupted: the machine on which pip is killed while it installs.

    Returns:
        Seconds, number of changed tasks, and the machines that failed.
    """
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(folder / "ansible")}
    command: list[str | Path] = [
        folder / "ansible/bin/ansible-playbook",
        "-i",
        "fleet.toml",
        HERE / "devices/pi/site.yml",
    ]
    begun = time.monotonic()
    killer = subprocess.Popen(interrupted.ssh(KILL_PIP)) if interrupted else None
    log = folder / "playbook.log"
    with log.open("wb") as output:
        subprocess.run(command, env=environment, cwd=folder / "fleet", stdout=output, stderr=subprocess.STDOUT)
    text = log.read_text(errors="replace")
    if killer:
        killer.terminate()  # if pip has not come so far
        killer.wait()
    recap = re.findall(r"^(\w+) +: ok=.* changed=(\d+) .* failed=(\d+)", text, re.MULTILINE)
    failed = [name for name, _, count in recap if int(count)]
    figures = {
        "seconds": round(time.monotonic() - begun, 1),
        "changed": sum(int(count) for _, count, _ in recap),
        "failed": failed,
    }
    print(f"playbook: {json.dumps(figures)}", flush=True)
    assert len(recap) >= len(NODES), text[-3000:]
    assert failed == ([interrupted.name] if interrupted else []), text[-3000:]
    return figures


def fault(asked: Asked, broken: Machine, command: str) -> dict[str, float]:
    """Breaks a node.

    Returns:
        Seconds until an answer without it, and until both answer again.
    """
    begun = time.monotonic()
    broken.sudo(command, check=False)  # a reboot ends the connection
    asked.until(1)
    missing = time.monotonic()
    asked.until(2)
    found = {"missing_s": round(missing - begun, 1), "back_s": round(time.monotonic() - begun, 1)}
    print(f"{broken.name}, {command}: {json.dumps(found)}", flush=True)
    return found


class Asked:
    """Steady load, and what it has seen.

    Attributes:
        requests: answered or lost, since both nodes answered for the first time.
        lost: the errors among them.
        lowest: lowest stated accuracy.
    """

    def __init__(self, client: Client, bundle: Bundle) -> None:
        self._client, self._sample = client, np.zeros((1, *bundle.input_of(0).shape), np.uint8)
        self.requests, self.lost, self.lowest = 0, list[str](), 1.0
        self._ended, self._news, self._begun = threading.Event(), threading.Condition(), False
        self._latest: tuple[int, str] = (0, "")

    def run(self) -> None:
        """Asks until the end."""
        while not self._ended.wait(PAUSE_S):
            try:
                answer = self._client.infer(self._sample)
            except NonnError as exc:
                if self._begun:
                    self.requests += 1
                    self.lost.append(f"{type(exc).__name__}: {exc}")
                continue
            with self._news:
                self._latest = (int(answer.answered.sum()), answer.bundle)
                self._begun |= self._latest[0] == len(NODES)
                self.requests += self._begun
                self.lowest = min(self.lowest, answer.expected_accuracy)
                self._news.notify_all()

    def until(self, nodes: int, bundle: str = "") -> None:
        """Returns when as many nodes answer, of a bundle if one is given."""
        with self._news:
            came = self._news.wait_for(lambda: self._latest[0] == nodes and bundle in ("", self._latest[1]), WAIT_S)
        assert came, f"{nodes} nodes did not answer within {WAIT_S:g} s; the latest: {self._latest}, {self.lost[-1:]}"

    def end(self) -> None:
        """Ends the load."""
        self._ended.set()


@contextlib.contextmanager
def load(client: Client, bundle: Bundle) -> Iterator[Asked]:
    """Steady load for as long as the context lasts."""
    asked = Asked(client, bundle)
    thread = threading.Thread(target=asked.run)
    thread.start()
    try:
        yield asked
    finally:
        asked.end()
        thread.join()


if __name__ == "__main__":
    main()
