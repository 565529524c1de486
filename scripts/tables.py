"""Puts the tables of results into the README, from the files that the commands wrote.

    python scripts/readme.py            # writes README.md
    python scripts/readme.py --check    # ends with 1 if it would change

A table stands between ``<!-- study FILE -->`` and ``<!-- end -->``; FILE is a ``study.json`` of ``nonn study``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from nonn.files import atomic_file
from nonn.report.study import short_markdown

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
_TABLE = re.compile(r"(<!-- study (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Writes or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    text = README.read_text()
    wanted = with_tables(text)
    if args.check:
        return int(wanted != text)
    with atomic_file(README) as file:
        file.write_text(wanted)
    return 0


def with_tables(text: str) -> str:
    """The text with every table made anew.

    Raises:
        OSError: a file that it names is not there.
    """
    return _TABLE.sub(lambda m: f"{m[1]}{short_markdown(json.loads((ROOT / m[2]).read_text()))}\n{m[3]}", text)


if __name__ == "__main__":
    sys.exit(main())
