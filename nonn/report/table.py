"""Tables defined once, as columns with a key in report.json and a format; laid out as text, Markdown or HTML.

No dependency, so that ``nonn report`` works with the base install.

Figures are rounded to what the test set supports: as many digits as one sample is worth, and at most two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from nonn.documents.shown import html_table, percent

__all__ = [
    "Column",
    "IntervalColumn",
    "Table",
    "TextColumn",
    "as_html",
    "as_markdown",
    "as_text",
    "digits_of",
    "percent",
    "points",
    "points_of",
    "share_of",
    "show_interval",
]


def points(value: float, digits: int = 2) -> str:
    """A difference of accuracies as percentage points; never ``-0.00``."""
    return f"{round(100 * value, digits) + 0.0:.{digits}f}"


def digits_of(samples: int) -> int:
    """Decimals of a percentage that so many samples support: 0 up to 100 samples, 1 up to 1,000, 2 beyond."""
    return max(0, min(2, math.ceil(math.log10(max(1, samples))) - 2))


def share_of(samples: int, at_most: int = 2) -> Callable[[float], str]:
    """Prints accuracies that were counted on so many samples."""
    digits = min(at_most, digits_of(samples))
    return lambda value: percent(value, digits)


def points_of(samples: int) -> Callable[[float], str]:
    """Prints differences of accuracies that were counted on so many samples."""
    digits = digits_of(samples)
    return lambda value: points(value, digits)


def show_interval(show: Callable[[float], str]) -> Callable[[Sequence[float]], str]:
    """Prints intervals, with the unit once."""

    def shown(ends: Sequence[float]) -> str:
        low, high = map(show, ends)
        return f"{low.removesuffix(' %')} to {high}"

    return shown


def _count(value: int) -> str:
    return f"{value:,}"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading, with the unit where there is one.
        key: the attribute of a row, or its key in a mapping.
        show: how a value is printed.
        missing: text for a value that is None.
        minor: left out on narrow screens.
        least: smaller values, either way, are shown pale: one sample of the test set.
    """

    title: str
    key: str
    show: Callable[..., str] = _count
    missing: str = "–"
    minor: bool = False
    least: float = 0.0

    def of(self, row: object) -> object:
        """The value in a row."""
        return row[self.key] if isinstance(row, Mapping) else getattr(row, self.key)

    def text(self, row: object) -> str:
        """The printed text of the value in a row."""
        value = self.of(row)
        return self.missing if value is None else self.show(value)

    def is_pale(self, row: object) -> bool:
        """Whether the value in a row is smaller than the column resolves."""
        value = self.of(row)
        return isinstance(value, int | float) and abs(value) < self.least * (1 - 1e-9)

    @property
    def is_number(self) -> bool:
        """Whether cells are numbers, which are right-aligned."""
        return True


class TextColumn(Column):
    """A column of words, which are left-aligned."""

    @property
    def is_number(self) -> bool:
        """Never."""
        return False


class IntervalColumn(TextColumn):
    """A column of intervals [low, high], of the values in the column before it."""


@dataclass(frozen=True)
class Table:
    """Columns and their rows: parts of a document, or mappings."""

    columns: tuple[Column, ...]
    rows: Sequence[object]

    def in_cells(self) -> list[tuple[Column, Column | None]]:
        """The columns of a page, each with that of its intervals, which share its cells."""
        following = (*self.columns[1:], None)
        return [
            (column, after if isinstance(after, IntervalColumn) else None)
            for column, after in zip(self.columns, following, strict=True)
            if not isinstance(column, IntervalColumn)
        ]

    def values(self) -> list[list[object]]:
        """The values with all their digits, row by row."""
        return [[column.of(row) for column in self.columns] for row in self.rows]

    def cells(self) -> list[list[str]]:
        """The printed texts, row by row."""
        return [[column.text(row) for column in self.columns] for row in self.rows]


def as_text(table: Table) -> str:
    """A table for a terminal."""
    titles = [column.title for column in table.columns]
    lines = [titles, *table.cells()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]

    def align(line: list[str]) -> str:
        padded = (
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([align(titles), "  ".join("─" * width for width in widths), *map(align, lines[1:])])


def as_markdown(table: Table) -> str:
    """A table for a document; a cell is text and no markup."""
    rule = ["---:" if column.is_number else ":---" for column in table.columns]
    cells = [[escape(cell, quote=False).replace("|", "\\|") for cell in line] for line in table.cells()]
    lines = [[column.title for column in table.columns], rule, *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_html(table: Table, caption: str = "") -> str:
    """A table for a notebook."""
    return html_table([column.title for column in table.columns], table.cells(), caption)
