"""Writes ``docs/configuration.md`` from the declarations of the configuration classes.

python scripts/configuration.py            # writes the file
python scripts/configuration.py --check    # writes nothing, exits with 1 if the file would change
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from nonn_sim.scenario import (
    AggregatorConfig,
    FleetConfig,
    Group,
    LinkConfig,
    LoadConfig,
    NodeConfig,
    RunConfig,
    ScheduledFault,
)

from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import PolicyConfig
from nonn.config import Experiment
from nonn.files import atomic_file
from nonn.reliability.placement import Machine
from nonn.toml.listing import TableListing, as_markdown, tables_of

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

_HEAD = """# Configuration

Every input file is TOML. A missing key has its default; an unknown key is an error that names the nearest known one,
and an invalid value is an error that names the file, the key and the allowed values.

This document is generated from the code: `python scripts/configuration.py`. `nonn config` prints the same options of an
experiment file as TOML, `nonn config distill.objectives` those of a table, and `nonn config EXPERIMENT.toml` the values
that an experiment uses.
"""
_EXPERIMENT = """
## Experiment file

For `nonn run`, `study` and `partition`. `--set distill.epochs=3` overrides a value. The defaults are those of the
digits experiment; [`examples/digits.toml`](../examples/digits.toml) names the main ones.
"""
_POLICY = """
## Policy

For `nonn serve --policy`, and as a table of a scenario; [policy.md](policy.md) explains it.
"""
_INVENTORY = """
## Inventory

For `nonn serve --inventory`: the nodes, one table each.
"""
_SCENARIO = """
## Scenario

For `nonn-sim run`, with a `[policy]` as above. `[nodes]` applies to every device, a `[[node]]` table with `device = i`
to one, with the same keys; `[link]` applies to every link, and `link = { … }` in a node's table to one.
"""
_MACHINES = """
## Machines

For `nonn-sim enumerate --place`: the machines on which students are placed.
"""


def document() -> str:
    """The whole document."""
    scenario = [
        *tables_of(RunConfig, key="scenario"),
        *tables_of(LoadConfig, key="load"),
        *tables_of(AggregatorConfig, key="aggregator"),
        *tables_of(FleetConfig, key="fleet"),
        *(table for table in tables_of(NodeConfig, key="nodes") if table.key == "nodes"),
        *tables_of(LinkConfig, key="link"),
        *tables_of(Group, key="group", repeated=True),
        *tables_of(ScheduledFault, key="fault", repeated=True),
    ]
    sections: list[tuple[str, Iterable[TableListing]]] = [
        (_EXPERIMENT, tables_of(Experiment)),
        (_POLICY, tables_of(PolicyConfig, key="policy")),
        (_INVENTORY, tables_of(Node, key="node", repeated=True)),
        (_SCENARIO, scenario),
        (_MACHINES, tables_of(Machine, key="device", repeated=True)),
    ]
    return _HEAD + "".join(f"{text}\n{as_markdown(list(tables))}" for text, tables in sections)


def main() -> int:
    """Writes or compares the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    wanted = document()
    changed = not DOCUMENT.exists() or DOCUMENT.read_text() != wanted
    if changed and not args.check:
        with atomic_file(DOCUMENT) as file:
            file.write_text(wanted)
    return int(args.check and changed)


if __name__ == "__main__":
    sys.exit(main())
