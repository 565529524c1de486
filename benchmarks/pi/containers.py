"""Debian machines with systemd as their first process: systemd-nspawn containers on one bridge, with an ssh server.

Mounts, network and processes are in namespaces and end with them; the image is kept. Limit: the containers share this
machine's kernel, so they say nothing about memory limits, radio or cards.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

__all__ = ["Machine", "SkippedError", "check_machine", "groups", "make_image", "network", "remove_groups"]

DEBIAN = "bookworm"
PACKAGES = "systemd,systemd-sysv,dbus,openssh-server,python3,python3-venv,sudo,iproute2,procps"  # a Pi OS has them
PROGRAMS = ("systemd-nspawn", "mmdebstrap", "ssh-keyscan", "unshare", "ip")
BRIDGE, NETWORK = "nonn-pi", "10.99.7."
WAIT_S = 300.0  # for a machine to boot
BOOT = 'while systemd-nspawn "$@"; [ $? = 133 ]; do :; done'  # 133: it wants to be booted again


class SkippedError(Exception):
    """This machine cannot run it; the message has the reason and a remedy."""


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


def make_image(base: Path) -> None:
    """A root folder of Debian, if it is not there yet; needs the Internet.

    Raises:
        SkippedError: it cannot be made.
    """
    if (base / "done").exists():
        return
    shutil.rmtree(base, ignore_errors=True)
    options = ["--variant=minbase", f"--include={PACKAGES}"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    made = subprocess.run(["mmdebstrap", "--quiet", *options, DEBIAN, base], stderr=subprocess.PIPE, text=True)
    if made.returncode:
        raise SkippedError(f"mmdebstrap cannot make the image: {made.stderr.strip().splitlines()[-1]}")
    (base / "done").touch()


def network() -> None:
    """Sets up the bridge, and an ssh key, in this process's own namespaces."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", f"{NETWORK}1/24", "dev", BRIDGE], check=True)
    subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)  # systemd-nspawn keeps state there
    keys = Path("~/.ssh").expanduser()  # hidden by an empty one, so that the user's file of known hosts stays as it is
    keys.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", keys], check=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_ed25519"], check=True)


def groups() -> list[Path]:
    """For each hierarchy of control groups that systemd uses: the folder for those of the machines."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kind, path = line.split(":", 2)
        tops = {"name=systemd": ("systemd",), "": ("unified", ".")}.get(kind, ())
        tree = [Path("/sys/fs/cgroup", top) for top in tops if Path("/sys/fs/cgroup", top, "cgroup.procs").exists()]
        found += [top / path.lstrip("/") / BRIDGE for top in tree[:1]]
    return found


def remove_groups(group: Path) -> None:
    """Removes a control group and those in it."""
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
