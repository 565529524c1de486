"""Policy options of every command that starts an aggregator."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nonn.arguments import add_field, existing

if TYPE_CHECKING:
    from nonn.aggregator.policy import PolicyConfig


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ``policy_of`` reads."""
    parser.add_argument(
        "--policy",
        type=existing,
        metavar="FILE",
        help="TOML file with a [policy] table: deadline, quorum, hedging",
    )
    add_field(parser, "--deadline", "nonn.aggregator.policy:PolicyConfig.deadline_s", "S")
    add_field(parser, "--quorum", "nonn.aggregator.policy:PolicyConfig.quorum", "N")


def policy_of(args: argparse.Namespace) -> PolicyConfig:
    """The policy of the file, or the default one, overridden by the other options.

    Raises:
        ConfigError: the file or an option is invalid.
    """
    import dataclasses

    from nonn.aggregator.policy import PolicyConfig
    from nonn.aggregator.policy.file import load_policy

    config = load_policy(args.policy) if args.policy else PolicyConfig()
    given = {"deadline_s": args.deadline_s, "quorum": args.quorum}
    return dataclasses.replace(config, **{key: value for key, value in given.items() if value is not None})
