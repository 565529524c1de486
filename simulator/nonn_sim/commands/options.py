"""Options that several commands of the simulator have."""

from __future__ import annotations

import argparse

from nonn.arguments import share
from nonn.jobs import BACKENDS

__all__ = ["add_backend", "add_levels"]


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Adds ``--backend``."""
    parser.add_argument(
        "--backend", choices=BACKENDS, default=BACKENDS[0], help="backend that computes the runs (default: %(default)s)"
    )


def add_levels(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds ``--level``, a list of accuracies; ``what`` says what is computed for each."""
    parser.add_argument("--level", action="append", default=[], type=share, metavar="ACCURACY", help=what)
