"""``nonn``: the command line. ``nonn.commandline`` turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence

from nonn import __version__
from nonn.arguments import FieldParser
from nonn.commandline import run_command
from nonn.threads import limit_spinning

__all__ = ["COMMANDS", "build_parser", "command_parser", "main"]

# Each is a module nonn.cli.<name> with SUMMARY, add_arguments(parser) and run(args). Each imports what it needs
# when it runs, so that `nonn --help` stays fast.
COMMANDS = (
    "demo",
    "run",
    "study",
    "runs",
    "init",
    "config",
    "partition",
    "report",
    "export",
    "up",
    "serve",
    "top",
    "watch",
    "predict",
    "certs",
    "fleet",
    "bench",
    "doctor",
    "completion",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``nonn``."""
    return command_parser("nonn", "One teacher, many small students, one answer.", "nonn.cli", COMMANDS)


def command_parser(prog: str, summary: str, package: str, commands: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a program with several commands.

    Args:
        prog: name of the program.
        summary: description in its help.
        package: package of the commands' modules.
        commands: names of the commands.
    """
    limit_spinning(os.environ)  # before a command loads torch or NumPy
    parser = FieldParser(prog=prog, description=summary)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in commands:
        module = importlib.import_module(f"{package}.{name}")
        command = subparsers.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
