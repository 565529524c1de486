"""Numbers and tables as people read them: percentages, and HTML tables for notebooks.

A notebook shows an object by its method ``_repr_html_``. The HTML has no style sheet: it follows the notebook's theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table", "percent"]


def percent(value: float, digits: int = 2) -> str:
    """An accuracy in [0, 1] as per cent; a value below 1 is never rounded up to 100."""
    shown = min(100 * value, 100 - 10**-digits) if value < 1 else 100.0
    return f"{shown:.{digits}f} %"


def html_table(titles: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """An HTML table; all text is escaped.

    Args:
        titles: heading of each column.
        rows: the cells of each row.
        caption: text above the table; empty for none.
    """

    def line(kind: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"

    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(line("td", cells) for cells in rows)
    return f"<table>{above}<thead>{line('th', titles)}</thead><tbody>{body}</tbody></table>"
