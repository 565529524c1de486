"""The options of a configuration class: every key with its value, default, allowed values and meaning.

``nonn config`` prints them and ``scripts/configuration.py`` writes them to ``docs/configuration.md``, so that
declaration, command and document cannot differ.
"""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nonn.toml.declarations import choices, describe, fields_of, unpack

__all__ = ["Option", "TableListing", "as_markdown", "as_toml", "tables_of", "toml_value"]

_WIDTH = 100
_LOOSE = re.compile(r"(?<!\w)_|_(?!\w)")  # underscores that Markdown reads as emphasis


@dataclass(frozen=True)
class Option:
    """One key.

    Attributes:
        key: its dotted path.
        value: its value.
        default: its value if left out; None if it is required, since TOML has no null.
        allowed: description of the allowed values.
        choices: the allowed names; empty if it is not a choice.
        meaning: description for users.
    """

    key: str
    value: Any
    default: Any
    allowed: str
    choices: tuple[str, ...]
    meaning: str

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


@dataclass(frozen=True)
class TableListing:
    """A table of a file.

    Attributes:
        key: its dotted path; empty for the top of the file.
        meaning: description for users.
        options: its keys, without those that are tables.
        repeated: whether it is one of a list of tables.
        present: whether it is in the file; false for the template of an empty list of tables.
    """

    key: str
    meaning: str
    options: tuple[Option, ...]
    repeated: bool = False
    present: bool = True


def tables_of(
    cls: type,
    config: Any = None,
    key: str = "",
    meaning: str = "",
    *,
    repeated: bool = False,
    present: bool = True,
) -> Iterator[TableListing]:
    """The tables of a configuration class, in the order of a file.

    Args:
        cls: the dataclass.
        config: an object of it, for values; None uses the defaults.
        key: dotted path of the table.
        meaning: description of the table; empty uses the class's docstring.
        repeated: whether it is one of a list of tables.
        present: whether it is in the file.
    """
    options, below = [], []
    prefix = f"{key}." * bool(key)
    for name, field in fields_of(cls).items():
        bare, _ = unpack(field.hint)
        default = None if field.default is dataclasses.MISSING else field.default
        value = default if config is None else getattr(config, name)
        item = unpack((typing.get_args(bare) or (None,))[0])[0]
        if dataclasses.is_dataclass(bare):
            below.append(tables_of(typing.cast(type, bare), value, prefix + name, field.meaning))
        elif dataclasses.is_dataclass(item):
            below += [
                tables_of(
                    typing.cast(type, item),
                    entry,
                    prefix + name,
                    field.meaning,
                    repeated=True,
                    present=entry is not None,
                )
                for entry in value or (None,)
            ]
        else:
            options.append(
                Option(prefix + name, value, default, describe(field.hint), choices(field.hint), field.meaning)
            )
    yield TableListing(key, meaning or _first_line(cls), tuple(options), repeated, present)
    for tables in below:
        yield from tables


def toml_value(value: Any) -> str:
    """A value as TOML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_toml_key(name)} = {toml_value(each)}' for name, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, bool | str):  # the same in JSON and TOML, except for U+007F
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def as_toml(tables: Sequence[TableListing]) -> str:
    """A file with every key, each under a comment with its meaning and allowed values."""
    return "\n".join(filter(None, map(_toml_table, tables)))


def as_markdown(tables: Sequence[TableListing], level: int = 3) -> str:
    """A heading and a table of options for each table."""
    return "\n".join(_markdown_table(table, "#" * level) for table in tables if table.options)


def _toml_table(table: TableListing) -> str:
    if not table.options:
        return ""
    head = f"[[{table.key}]]" if table.repeated else f"[{table.key}]"
    lines = [*_comment(table.meaning), head]
    for option in table.options:
        lines += ["", *_comment(option.meaning), *_comment(f"may be: {option.allowed}")]
        if option.default is None:
            lines.append("# must be given")
        elif option.value != option.default:
            lines.append(f"# default: {toml_value(option.default)}")
        lines.append(f"{option.name} = {'' if option.value is None else toml_value(option.value)}")
    if not table.present:
        lines = [f"# {line}".rstrip() for line in lines]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _markdown_table(table: TableListing, hashes: str) -> str:
    head = f"[[{table.key}]]" if table.repeated else f"[{table.key}]"
    lines = [f"{hashes} `{head}`", "", table.meaning, "", "| key | default | may be | meaning |", "|---|---|---|---|"]
    for option in table.options:
        default = "must be given" if option.default is None else f"`{toml_value(option.default)}`"
        words = (_LOOSE.sub(r"\_", text) for text in (option.allowed, option.meaning))
        cells = (f"`{option.name}`", default, *words)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
