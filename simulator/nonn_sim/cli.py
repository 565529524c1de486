"""``nonn-sim``: the command line. Errors become exit codes here; see nonn.errors for which."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from nonn import __version__
from nonn.errors import NonnError
from nonn.extras import missing_extra

__all__ = ["COMMANDS", "main"]

# Each is a module nonn_sim.commands.<name> with SUMMARY, add_arguments(parser) and run(args). They import what they
# need when they run, so that `nonn-sim --help` stays fast.
COMMANDS = ("enumerate", "run", "replay")

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="nonn-sim", description="What happens to accuracy when devices fail?")
    parser.add_argument("--version", action="version", version=f"nonn-sim {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"nonn_sim.commands.{name}")
        command = subparsers.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except NonnError as exc:
        return _fail(arguments.command, exc)
    except ModuleNotFoundError as exc:
        missing = missing_extra(exc)
        if missing is None:
            raise
        return _fail(arguments.command, missing)
    except KeyboardInterrupt:
        print(f"nonn-sim {arguments.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `nonn-sim enumerate … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fail(command: str, error: NonnError) -> int:
    print(f"nonn-sim {command}: {error}", file=sys.stderr)
    return error.exit_code
