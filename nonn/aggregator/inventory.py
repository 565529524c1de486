"""The inventory: a TOML file that lists the nodes, with address and student of each.

::

    [[node]]
    id = "kitchen"
    address = "192.168.1.20:50051"
    student = 0

Several nodes may run the same student. They are replicas: a slow or failed one is hedged with another.

An ordinary server of the Open Inference Protocol, such as Triton on a Jetson, may replace a nonn node::

    [[node]]
    id = "jetson"
    address = "192.168.1.21:8001"
    student = 1
    foreign = true          # it cannot prove the bundle of its model: the operator vouches for it
    model = "resnet-part-1" # its names; the defaults are student-1, input and features
    input = "image"
    output = "embedding"
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from nonn.errors import AddressError, ConfigError
from nonn.files import atomic_file
from nonn.rpc.address import canonical, resolve, split_address
from nonn.toml import from_mapping, parse_toml, toml_value
from nonn.toml.constraints import NotEmpty, Rules, Whole

__all__ = ["Node", "load_inventory", "warn_of_unknown_hosts", "write_inventory"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One device of the cluster."""

    id: Annotated[str, NotEmpty(), "stable, unique name, used in messages and metrics"]
    address: Annotated[str, "host:port"]
    student: Annotated[Whole, "number of the student that it runs"]
    foreign: Annotated[
        bool, "an ordinary server of the protocol: it gets float32 inputs, and its replies need not name a bundle"
    ] = False
    model: Annotated[str, "foreign: name of the model there; empty is student-0, student-1 and so on"] = ""
    input: Annotated[str, "foreign: name of its input"] = "input"
    output: Annotated[str, "foreign: name of its output"] = "features"

    def rules(self) -> Rules:
        """Checks of several fields, and those that no constraint expresses."""
        yield "id", self.id.isprintable(), "has characters that cannot be printed"  # logs and terminals show it
        for key in ("model", "input", "output"):
            fixed = getattr(self, key) == getattr(Node, key)
            yield key, self.foreign or fixed, "goes with foreign = true; other nodes have fixed names"


def load_inventory(path: Path, num_students: int) -> tuple[Node, ...]:
    """Reads and checks an inventory.

    Args:
        path: the TOML file.
        num_students: number of students N of the bundle.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown or missing, an address or student is invalid,
            two nodes share an id or an address, or a node that is not foreign names a model or tensor. The message
            names file, node and key.
    """
    tree = parse_toml(path)
    for key in tree:
        if key != "node":
            raise ConfigError(f"{path}: unknown key '{key}'; an inventory contains [[node]] tables")
    tables = tree.get("node", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: no nodes; write a [[node]] table with id, address and student for each")
    nodes = tuple(from_mapping(Node, table, source=str(path), prefix=f"node[{i}].") for i, table in enumerate(tables))
    seen: dict[tuple[str, str], str] = {}
    for index, node in enumerate(nodes):
        name = f"{path}: node[{index}] '{node.id}'"
        address = canonical(node.address, f"{name}: address")
        if node.student >= num_students:
            raise ConfigError(f"{name}: student {node.student}; the bundle has 0 to {num_students - 1}")
        for key, value in (("id", node.id), ("address", address)):
            other = seen.setdefault((key, value), f"node[{index}]")
            if other != f"node[{index}]":
                raise ConfigError(f"{name}: {key} {getattr(node, key)!r} is used by {other}; each may occur once")
    return nodes


def warn_of_unknown_hosts(nodes: Sequence[Node]) -> None:
    """Logs hosts that cannot be resolved, since such a node is only silent otherwise; may take seconds (DNS)."""
    for node in nodes:
        try:
            resolve(split_address(node.address)[0])
        except AddressError as exc:
            _log.warning(
                "node '%s': %s; it is down until its host can be resolved: is the name in the inventory right?",
                node.id,
                exc,
                extra={"event": "node_unresolved", "node": node.id, "reason": str(exc)},
            )


def write_inventory(path: Path, nodes: Sequence[Node]) -> None:
    """An inventory as text that ``load_inventory`` reads."""
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(map(_table, nodes)))


def _table(node: Node) -> str:
    """The table of a node, without fields that have their default."""
    keys = [f for f in dataclasses.fields(Node) if getattr(node, f.name) != f.default]
    return "[[node]]\n" + "".join(f"{f.name} = {toml_value(getattr(node, f.name))}\n" for f in keys)
