"""Options that several commands of the simulator have."""

from __future__ import annotations

import argparse

from nonn.arguments import share

__all__ = ["add_backend", "add_levels"]


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Adds ``--backend``."""
    parser.add_argument(
        "--backend", choices=("local", "ray"), default="local", help="backend that computes the runs (default: local)"
    )


def add_levels(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds ``--level``, a list of accuracies; ``what`` says what is computed for each."""
    parser.add_argument("--level", action="append", default=[], type=share, metavar="ACCURACY", help=what)
