"""``nonn-sim``: the command line. Errors become exit codes as those of ``nonn`` do."""

from __future__ import annotations

from collections.abc import Sequence

from nonn.cli import run_command

__all__ = ["COMMANDS", "main"]

# Each is a module nonn_sim.commands.<name>, as in nonn.cli.
COMMANDS = ("enumerate", "run", "replay")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    summary = "What happens to accuracy when devices fail?"
    return run_command("nonn-sim", summary, "nonn_sim.commands", COMMANDS, argv)
