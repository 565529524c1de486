"""Puts the tables of results into the README and the documents, from the files that the commands wrote.

    python scripts/tables.py            # writes them
    python scripts/tables.py --check    # writes nothing, ends with 1 if it would change one

A table stands between ``<!-- KIND FILE -->`` and ``<!-- end -->``:

============  ===========================================================================
kind          made of
============  ===========================================================================
study         ``study.json`` of ``nonn study``: the head a method serves, and the same for all
study-heads   the same file: every head on the same students
partitioners  ``compare.json`` of ``nonn partition --compare``
============  ===========================================================================
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nonn.files import atomic_file
from nonn.report.comparison import comparison_markdown
from nonn.report.study import heads_markdown, short_markdown

ROOT = Path(__file__).resolve().parent.parent
KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "study": short_markdown,
    "study-heads": heads_markdown,
    "partitioners": comparison_markdown,
}
_TABLE = re.compile(rf"(<!-- ({'|'.join(KINDS)}) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Writes or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    changed = 0
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = document.read_text()
        wanted = with_tables(text)
        changed += wanted != text
        if wanted != text and not args.check:
            with atomic_file(document) as file:
                file.write_text(wanted)
    return int(args.check and changed > 0)


def with_tables(text: str) -> str:
    """The text with every table made anew.

    Raises:
        OSError: a file that it names is not there.
    """
    return _TABLE.sub(lambda m: f"{m[1]}{KINDS[m[2]](json.loads((ROOT / m[3]).read_text()))}\n{m[4]}", text)


if __name__ == "__main__":
    sys.exit(main())
