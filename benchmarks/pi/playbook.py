"""The playbook over ssh, as docs/pi.md runs it, and once with pip killed on a node while it installs."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

from benchmarks.pi.containers import Machine

__all__ = ["AGGREGATOR", "INVENTORY", "NODES", "collect_wheels", "install_ansible", "nonn_fleet", "play"]

HERE = Path(__file__).resolve().parent.parent.parent
ANSIBLE = "ansible-core==2.19.14"  # the last for Python 3.11
AGGREGATOR, NODES = "main", ("kitchen", "attic")
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
# Ends pip on a node as soon as it has written its first package.
KILL_PIP = (
    "until [ -d /opt/nonn/lib/python3.11/site-packages/numpy ]; do sleep 0.05; done; "
    "kill -9 $(pgrep -f '^/opt/nonn/bin/python -m pip install')"
)


def install_ansible(folder: Path) -> None:
    """Ansible in a virtual environment of its own, if it is not there yet; needs the Internet."""
    if (folder / ANSIBLE).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", ANSIBLE], check=True)
    (folder / ANSIBLE).touch()


def collect_wheels(folder: Path) -> None:
    """The wheels for machines like this one; needs the Internet."""
    collect = [sys.executable, "scripts/wheelhouse.py", str(folder), "--python", "3.11", "--extra", "serve"]
    collect += ["--machine", platform.machine()]
    subprocess.run(collect, check=True, cwd=HERE, stderr=subprocess.DEVNULL)


def nonn_fleet(folder: Path, *arguments: str) -> None:
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
