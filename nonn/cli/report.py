"""``nonn report BUNDLE [BUNDLE…]``: the accuracy of bundles against failed devices, as tables, JSON, CSV or HTML."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from nonn.arguments import existing, path

SUMMARY = "show a bundle's accuracy against failed devices: table, JSON, CSV, Markdown or HTML"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument(
        "bundles",
        type=existing,
        nargs="+",
        metavar="BUNDLE",
        help="folder of the bundle; further ones are compared with the first as other methods",
    )
    parser.add_argument("--json", action="store_true", help="print only report.json on stdout")
    parser.add_argument("--html", type=path, metavar="FILE", help="write the report as one self-contained HTML file")
    parser.add_argument("--markdown", type=path, metavar="FILE", help="write the report's tables as Markdown")
    parser.add_argument("--csv", type=path, metavar="FILE", help="write all numbers as table,row,quantity,value")
    parser.add_argument("--tables", type=path, metavar="FOLDER", help="write each table as a separate CSV file")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.bundle import load_bundle
    from nonn.documents import to_json
    from nonn.files import atomic_file
    from nonn.report import build_report
    from nonn.report.html import write_page
    from nonn.report.methods import check_same_task
    from nonn.report.text import csv_report, markdown_report, text_report, whole_tables, wide_csv

    bundle, *others = [load_bundle(path) for path in args.bundles]
    for warning in check_same_task([bundle, *others]):
        print(f"nonn report: warning: {warning}", file=sys.stderr)
    report = build_report(bundle, others=others, timed=True)

    def text(content: str) -> Callable[[Path], None]:
        def write(file: Path) -> None:
            with atomic_file(file) as temporary:
                temporary.write_bytes(content.encode())

        return write

    _write("html", args.html, lambda file: write_page(bundle, report, file))
    _write("markdown", args.markdown, text(markdown_report(report)))
    _write("csv", args.csv, text(csv_report(report)))

    def tables(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in whole_tables(report).items():
            text(wide_csv(table))(folder / f"{name}.csv")

    _write("tables", args.tables, tables)
    if args.json:
        print(json.dumps(to_json(report), indent=2, ensure_ascii=False))
    else:
        print(text_report(report), end="")
    return 0


def _write(option: str, file: Path | None, write: Callable[[Path], None]) -> None:
    """Writes one file and prints its path on stderr; does nothing without a file."""
    from nonn.errors import ConfigError

    if file is None:
        return
    try:
        write(file)
    except OSError as exc:
        raise ConfigError(f"--{option} {file}: cannot be written ({exc.strerror})") from exc
    print(f"{'page' if option == 'html' else option:<9}{file}", file=sys.stderr)
