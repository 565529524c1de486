"""``nonn init [FILE]``: writes a commented experiment file for own data, model and devices.

On a terminal it asks for what no option gives. The file has the keys that a first experiment changes;
``nonn config`` prints all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.arguments import count, path, usage

if TYPE_CHECKING:
    from nonn.toml.listing import TableListing

SUMMARY = "write a commented experiment file for own data, model and devices"

_QUESTIONS = {
    "data": "data: a folder with a folder of images for each class, a .npz or .parquet file, or CSV recordings "
    "(empty: the digits)",
    "teacher": "teacher: a model such as wrn-16-2, or package.module:factory",
    "devices": "devices: 1 to 256",
}
_DEFAULTS = {"data": "", "teacher": "wrn-16-2", "devices": "8"}
# The keys that the file has, by the reader and the teacher that they need; empty for all.
_KEYS = {
    "experiment.name": "",
    "experiment.seed": "",
    "data.reader": "",
    "data.path": "path",
    "data.size": "imagefolder",
    "data.inputs": "npz",
    "data.labels": "npz parquet csv",
    "data.columns": "csv",
    "data.rate_hz": "csv",
    "data.window_s": "csv",
    "data.hop_s": "csv",
    "data.group": "csv npz",
    "data.crop": "",
    "data.flip": "imagefolder parquet cifar",
    "teacher.model": "",
    "teacher.features": "factory",
    "teacher.args": "factory",
    "teacher.weights": "",
    "teacher.normalise": "factory",
    "teacher.epochs": "",
    "partition.parts": "",
    "devices.count": "",
    "devices.p_fail": "",
    "student.model": "",
    "distill.epochs": "",
    "distill.batch": "",
    "guarantees.require": "",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument(
        "file", type=path, nargs="?", default=Path("experiment.toml"), metavar="FILE", help="(default: %(default)s)"
    )
    parser.add_argument("--data", metavar="PATH", help="folder of images, .npz, .parquet or .csv; empty for the digits")
    parser.add_argument("--reader", default="", metavar="NAME", help="reader of the data (default: by its form)")
    parser.add_argument("--teacher", metavar="MODEL", help="a model of nonn, or package.module:factory")
    parser.add_argument("--devices", type=_num_devices, metavar="N", help="number of devices")
    parser.add_argument("--name", default="", help="name of the experiment (default: that of the file)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Writes the file."""
    from nonn.config import load_experiment
    from nonn.errors import UsageError
    from nonn.files import atomic_file
    from nonn.toml.listing import as_toml, toml_value

    if args.file.exists() and not args.force:
        raise UsageError(f"{args.file}: exists; name another file, or replace it with --force")
    answers = {what: _answer(what, getattr(args, what)) for what in _QUESTIONS}
    name, teacher = (toml_value(text) for text in (args.name or args.file.stem, answers["teacher"]))
    overrides = [f"experiment.name={name}", f"teacher.model={teacher}"]
    overrides += [f"{key}={answers['devices']}" for key in ("devices.count", "partition.parts")]
    if answers["data"]:
        reader = args.reader or guess_reader(Path(answers["data"]).expanduser())
        overrides += [f"data.reader={toml_value(reader)}", f"data.path={toml_value(answers['data'])}"]
    elif args.reader:
        overrides.append(f"data.reader={toml_value(args.reader)}")
    with usage():
        experiment = load_experiment(None, overrides)
    needed = {experiment.data.reader, "path" * bool(experiment.data.path), "factory" * (":" in answers["teacher"])}
    text = as_toml(_tables(experiment, needed))
    with atomic_file(args.file) as temporary:
        temporary.write_text(f"# An experiment of nonn. All keys: nonn config {args.file}\n\n{text}")
    print(f"wrote {args.file}\ntry: nonn run {args.file}")
    return 0


def _num_devices(text: str) -> str:
    """A whole number of 1 or more, as text like every other answer."""
    return str(count(text))


def guess_reader(path: Path) -> str:
    """The reader for a file or folder.

    Raises:
        UsageError: it does not exist, or its form is unknown.
    """
    from nonn.errors import UsageError

    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if path.suffix in (".npz", ".parquet", ".csv"):
        return path.suffix[1:]
    if path.is_dir() and (any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))):
        return "parquet"
    if path.is_dir() and any(path.glob("*batch*")):
        return "cifar"
    if path.is_dir() and any(path.glob("*.csv")):
        return "csv"
    if path.is_dir() and any(path.glob("*-ubyte*")):
        return "idx"
    if path.is_dir() and any(entry.is_dir() for entry in path.iterdir()):
        return "imagefolder"
    raise UsageError(
        f"{path}: neither .npz, .parquet, .csv nor a folder of folders of images; name its reader with --reader"
    )


def _answer(what: str, given: str | None) -> str:
    """The option, the answer to its question on a terminal, or its default."""
    import sys

    if given is not None or not (sys.stdin and sys.stdin.isatty()):
        return _DEFAULTS[what] if given is None else given
    default = _DEFAULTS[what]
    return input(f"{_QUESTIONS[what]}{f' [{default}]' * bool(default)}: ").strip() or default


def _tables(experiment: object, needed: set[str]) -> list[TableListing]:
    """The tables of the file, with the keys that it has."""
    import dataclasses

    from nonn.config import Experiment
    from nonn.toml.listing import tables_of

    keys = {key for key, reason in _KEYS.items() if not reason or needed & set(reason.split())}
    tables = []
    for table in tables_of(Experiment, experiment):
        options = tuple(option for option in table.options if option.key in keys)
        if options:
            tables.append(dataclasses.replace(table, options=options))
    return tables
