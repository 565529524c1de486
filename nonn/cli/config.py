"""``nonn config [EXPERIMENT.toml] [KEY]``: every option with its value, default, meaning and allowed values.

The output is TOML; without a KEY it is a complete experiment file. ``policy`` and ``node`` show the tables of files for
``nonn serve``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.arguments import is_missing
from nonn.cli.run import add_overrides
from nonn.errors import UsageError

if TYPE_CHECKING:
    from nonn.toml.listing import TableListing

SUMMARY = "print every option of an experiment file with its default, meaning and allowed values"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument(
        "what",
        nargs="*",
        metavar="EXPERIMENT.toml | KEY",
        help="a file, to print its values; a table or key such as distill.objectives, to print only that; "
        "policy or node, for the files of nonn serve",
    )
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list of options")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.toml.listing import as_toml

    files = [Path(what) for what in args.what if what.endswith(".toml")]
    keys = [what for what in args.what if not what.endswith(".toml")]
    if len(files) > 1 or len(keys) > 1:
        raise UsageError("name one file and one key at most, for example: examples/digits.toml distill")
    if files and is_missing(files[0]):
        raise UsageError(f"{files[0]}: no such file")
    tables = list(_tables(files[0] if files else None, args.overrides, keys[0] if keys else ""))
    if args.json:
        options = [dataclasses.asdict(option) for table in tables for option in table.options]
        print(json.dumps(options, indent=2, ensure_ascii=False))
    else:
        print(as_toml(tables), end="")
    return 0


def _tables(file: Path | None, overrides: list[str], key: str) -> Iterator[TableListing]:
    """The tables and keys at or below a key; without a key, those of a whole experiment file.

    Raises:
        UsageError: the key does not exist.
    """
    from nonn.aggregator.inventory import Node
    from nonn.aggregator.policy import PolicyConfig
    from nonn.config import Experiment, load_experiment
    from nonn.toml import did_you_mean
    from nonn.toml.listing import tables_of

    tables = list(tables_of(Experiment, load_experiment(file, overrides)))
    if not key:
        yield from tables
        return
    tables += [*tables_of(PolicyConfig, key="policy"), *tables_of(Node, key="node", repeated=True, present=False)]
    names = {table.key for table in tables} | {option.key for table in tables for option in table.options}
    if key not in names:
        if Path(key).exists():
            raise UsageError(f"{key}: no experiment file: its name does not end with .toml")
        near = get_close_matches(key, names, n=1)
        shown = sorted(near or {name.partition(".")[0] for name in names} - {""})
        raise UsageError(f"unknown key '{key}'; {did_you_mean(key, shown, 'known tables')}")
    for table in tables:
        if f"{table.key}.".startswith(f"{key}."):
            yield table
        elif options := tuple(option for option in table.options if option.key == key):
            yield dataclasses.replace(table, options=options)
