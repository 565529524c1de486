"""Text of other machines, made safe for logs, terminals and pages: one line, no control characters, cut.

Anything can be in what a node or a server reports: new lines that look like further log lines, escape sequences that
a terminal obeys, marks that reverse the direction of text, megabytes. Characters that are not printable are written as
in Python's string literals. Markup needs no escaping here: pages and tables show text as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LIMIT", "printable", "printable_tree"]

LIMIT = 300  # characters; the longest reasons of our own are shorter


def printable(text: str, limit: int = LIMIT, keep: str = "") -> str:
    """Text as one printable line.

    Args:
        text: any text.
        limit: characters after which it is cut.
        keep: characters to keep although they are not printable, such as new lines of a traceback.
    """
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def printable_tree(value: Any) -> Any:
    """A value of JSON from a file or another machine, with printable texts and keys; nothing is cut."""
    if isinstance(value, str):
        return printable(value, len(value))
    if isinstance(value, Mapping):
        return {printable_tree(key): printable_tree(each) for key, each in value.items()}
    return [printable_tree(each) for each in value] if isinstance(value, list) else value
