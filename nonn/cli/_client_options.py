"""Options of the commands that are clients of an aggregator. Light, since every ``nonn`` command imports it."""

from __future__ import annotations

import argparse

from nonn.arguments import existing

__all__ = ["add_client_arguments"]


def add_client_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--tls``, ``--token-file`` and ``--insecure``."""
    parser.add_argument("--tls", type=existing, metavar="DIR", help="client folder written by nonn certs")
    parser.add_argument(
        "--token-file", type=existing, metavar="FILE", help="file with the token that the aggregator requires"
    )
    parser.add_argument("--insecure", action="store_true", help="send the token beyond loopback without TLS")
