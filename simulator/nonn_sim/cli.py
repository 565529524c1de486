"""``nonn-sim``: the command line. Errors become the same exit codes as in ``nonn``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nonn.cli import command_parser
from nonn.commandline import run_command

__all__ = ["COMMANDS", "build_parser", "main"]

# Each is a module nonn_sim.commands.<name>, as in nonn.cli.
COMMANDS = ("enumerate", "cuts", "run", "replay", "sweep", "liars", "sense")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``nonn-sim``."""
    summary = "Accuracy of a bundle when devices fail."
    return command_parser("nonn-sim", summary, "nonn_sim.commands", COMMANDS)
