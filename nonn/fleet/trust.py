"""Keys of the fleet's machines for ssh: what ``nonn fleet trust`` adds to ``known_hosts`` after a confirmation.

Ansible and ``nonn fleet`` end at a machine whose key ssh does not know, since they cannot ask. ``ssh-keyscan`` gets the
keys over the network, where an attacker could answer instead. So the fingerprints are shown, to be compared with those
that each machine prints at its first boot (``ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub``).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nonn.errors import ConfigError, UnreachableError
from nonn.fleet.hosts import Host

__all__ = ["Unknown", "add_keys", "unknown_hosts"]

KNOWN = Path("~/.ssh/known_hosts")
TIMEOUT_S = 10


@dataclass(frozen=True)
class Unknown:
    """A machine whose key ssh does not know.

    Attributes:
        host: the machine.
        keys: lines for known_hosts.
        fingerprints: of these keys.
    """

    host: Host
    keys: str
    fingerprints: str


def unknown_hosts(hosts: Iterable[Host], known: Path | None = None) -> list[Unknown]:
    """Fetches the keys of every machine that is not in ``known_hosts``.

    Args:
        hosts: of an inventory; those on this machine are left out.
        known: the file; None is the user's.

    Raises:
        ConfigError: OpenSSH's programs are not installed.
        UnreachableError: a machine does not answer.
    """
    file = (known or KNOWN).expanduser()
    found = []
    for host in hosts:
        port = str(host.variables.get("ansible_port", 22))
        name = host.address if port == "22" else f"[{host.address}]:{port}"
        if host.local or (file.exists() and _run("ssh-keygen", "-F", name, "-f", str(file))):
            continue
        keys = _run("ssh-keyscan", "-T", str(TIMEOUT_S), "-p", port, "--", host.address)
        if not keys:
            raise UnreachableError(f"{host.id}: no ssh server answers at {name}; is it on, and the address right?")
        found.append(Unknown(host, keys, _run("ssh-keygen", "-l", "-f", "-", given=keys)))
    return found


def add_keys(found: Iterable[Unknown], known: Path | None = None) -> None:
    """Adds keys to the file; creates it if it does not exist."""
    file = (known or KNOWN).expanduser()
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with file.open("a") as lines:
        lines.writelines(one.keys for one in found)


def _run(*command: str, given: str | None = None) -> str:
    """Standard output of a program, empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, input=given)
    except FileNotFoundError as exc:
        raise ConfigError(f"{command[0]} is not installed; apt-get install openssh-client") from exc
    return done.stdout if done.returncode == 0 else ""
