"""``nonn completion SHELL``: completes commands, options and files in a shell.

::

    nonn completion bash > ~/.local/share/bash-completion/completions/nonn
    nonn completion zsh > ~/.zfunc/_nonn
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from nonn.arguments import FieldType, existing

SUMMARY = "print a script that completes commands, options and files in a shell"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    from nonn.cli import build_parser

    parser = build_parser()
    for action in _actions(parser):
        if isinstance(action.type, FieldType):
            action.help = action.type.explain()
        if action.type in (existing, Path) or action.dest == "files":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in dict.fromkeys(action.choices.values()):
                yield from _actions(command)
