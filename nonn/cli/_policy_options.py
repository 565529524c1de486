"""Options of the policy, for every command that starts an aggregator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nonn.aggregator.policy import PolicyConfig


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="TOML file with a [policy] table: how nodes are waited for and hedged",
    )
    parser.add_argument("--deadline", type=float, metavar="S", help="seconds that a request waits (default: 1)")
    parser.add_argument("--quorum", type=int, metavar="N", help="fewest devices that must answer (default: 1)")


def policy_of(args: argparse.Namespace) -> PolicyConfig:
    """The file's policy, or the default one, with what the other options say.

    Raises:
        ConfigError: the file or an option says something that cannot be done.
    """
    import dataclasses

    from nonn.aggregator.policy import PolicyConfig
    from nonn.aggregator.policy.file import load_policy

    config = load_policy(args.policy) if args.policy else PolicyConfig()
    given = {"deadline_s": args.deadline, "quorum": args.quorum}
    return dataclasses.replace(config, **{key: value for key, value in given.items() if value is not None})
