"""Monitoring options of the commands that run an aggregator. Light, since every ``nonn`` command imports it."""

from __future__ import annotations

import argparse

from nonn.arguments import add_field, port

__all__ = ["add_observing_arguments"]


def add_observing_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options, named as the fields of ``ObservingOptions``."""
    group = parser.add_argument_group("observing")
    group.add_argument(
        "--http-port",
        type=port,
        metavar="PORT",
        help="port of dashboard, /metrics, /healthz, /readyz, /api/state and /v2 (inference); 0 is any free one "
        "(default: off)",
    )
    group.add_argument("--http-host", default="127.0.0.1", help="address to bind for HTTP (default: %(default)s)")
    group.add_argument("--http-tls", action="store_true", help="serve HTTP with TLS on loopback too, with --tls")
    group.add_argument(
        "--http-name",
        dest="http_names",
        action="append",
        metavar="NAME",
        help="further host name under which plain HTTP is asked, for example of a proxy; may be repeated",
    )
    group.add_argument("--switches", type=int, help=argparse.SUPPRESS)  # a socket that nonn up lets it inherit
    add_field(group, "--drift-rate", "nonn.aggregator.monitoring.options:ObservingOptions.drift_rate", "HZ")
