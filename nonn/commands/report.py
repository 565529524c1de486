"""``nonn report BUNDLE``: what a bundle knows about its accuracy, as a table, JSON or a page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

SUMMARY = "show a bundle's accuracy against failed devices: table, JSON or page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--json", action="store_true", help="print report.json alone on stdout")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page that opens from disk")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.bundle import load_bundle
    from nonn.errors import ConfigError
    from nonn.report import build_report
    from nonn.report.html import write_page
    from nonn.report.table import text_report

    bundle = load_bundle(args.bundle)
    report = build_report(bundle)
    if args.html:
        try:
            write_page(bundle, report, args.html)
        except OSError as exc:
            raise ConfigError(f"--html {args.html}: cannot be written ({exc.strerror})") from exc
        print(f"page     {args.html}", file=sys.stderr)
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(text_report(report), end="")
    return 0
