"""The inventory that Ansible and ``nonn fleet`` share: Ansible's TOML, with hosts whose names are ids.

::

    [all.vars]
    ansible_user = "pi"

    [aggregators.hosts.main]
    ansible_host = "192.168.1.10"

    [nodes.hosts.kitchen]
    ansible_host = "192.168.1.20"

``devices/pi/fleet.toml`` is a template.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonn.errors import ConfigError
from nonn.security.tls import check_id
from nonn.toml import parse_toml

__all__ = ["DEFAULT_STATE", "Host", "Hosts", "load_hosts"]

DEFAULT_STATE = "/var/lib/nonn-aggregator"  # of devices/pi/nonn-aggregator.service
NONN = "/opt/nonn/bin/nonn"


@dataclass(frozen=True)
class Host:
    """One machine.

    Attributes:
        id: its name in the inventory and in its certificate.
        variables: Ansible variables, including those of its groups.
    """

    id: str
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Its address."""
        return str(self.variables.get("ansible_host", self.id))

    @property
    def local(self) -> bool:
        """Whether it is this machine."""
        return self.variables.get("ansible_connection") == "local"

    @property
    def state(self) -> str:
        """Folder of ``nonn serve --state``, for aggregators."""
        return str(self.variables.get("nonn_state", DEFAULT_STATE))

    def bundle(self, name: str) -> str:
        """Folder of a bundle in the state folder, by its hash, for aggregators."""
        return f"{self.state}/bundles/{name}"

    def ssh(self, command: list[str]) -> list[str]:
        """The ssh command line that runs ``command`` on it, as root."""
        user = self.variables.get("ansible_user")
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        if port := self.variables.get("ansible_port"):
            options += ["-p", str(port)]
        target = f"{user}@{self.address}" if user else self.address
        return ["ssh", *options, "--", target, shlex.join(["sudo", *command])]


@dataclass(frozen=True)
class Hosts:
    """The machines of a fleet.

    Attributes:
        path: path of the file.
        aggregators: the aggregators, usually one.
        nodes: the devices.
    """

    path: Path
    aggregators: tuple[Host, ...]
    nodes: tuple[Host, ...]

    @property
    def certs(self) -> Path:
        """Folder of its certificates, as the Ansible role expects it."""
        return self.path.parent / str(self.aggregators[0].variables.get("nonn_certs", "certs"))


def load_hosts(path: Path) -> Hosts:
    """Reads and checks an inventory.

    Raises:
        ConfigError: the file is missing or not TOML, a group is missing, an id is invalid, or a host occurs twice. The
            message names file and host.
    """
    tree = parse_toml(path)
    groups = {name: _hosts(path, tree, name) for name in ("aggregators", "nodes")}
    for name, hosts in groups.items():
        if not hosts:
            raise ConfigError(f"{path}: no {name}; write [{name}.hosts.ID] with ansible_host for each")
    places: dict[tuple[object, ...], str] = {}
    for name, hosts in groups.items():
        for host in hosts:
            # Several machines behind one address differ in a port.
            ports = [host.variables.get(key) for key in ("ansible_port", "nonn_port")]
            other = places.setdefault((name, host.address, *ports), host.id)
            if other != host.id and not host.local:
                raise ConfigError(
                    f"{path}: '{other}' and '{host.id}' have the same address, {host.address}; machines behind one "
                    "address need an ansible_port each"
                )
    return Hosts(path, groups["aggregators"], groups["nodes"])


def _hosts(path: Path, tree: Mapping[str, Any], group: str) -> tuple[Host, ...]:
    shared = {**_table(path, tree, "all", "vars"), **_table(path, tree, group, "vars")}
    hosts = []
    for name, variables in _table(path, tree, group, "hosts").items():
        if not isinstance(variables, Mapping):
            raise ConfigError(f"{path}: {group}.hosts.{name} is not a table; write [{group}.hosts.{name}]")
        try:
            check_id(name)
        except ConfigError as exc:
            raise ConfigError(f"{path}: {group}.hosts: {exc}") from None
        hosts.append(Host(name, {**shared, **variables}))
    return tuple(hosts)


def _table(path: Path, tree: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A table of the file, empty if it is missing."""
    found: Any = tree
    for key in keys:
        found = found.get(key, {})
        if not isinstance(found, Mapping):
            raise ConfigError(f"{path}: {'.'.join(keys)} is not a table")
    return dict(found)


def names_of(host: Host) -> list[str]:
    """Names that a client may compare with an aggregator's certificate: its address, if that is one."""
    try:
        ipaddress.ip_address(host.address)
    except ValueError:
        return [host.address] if "." in host.address else []
    return [host.address]
