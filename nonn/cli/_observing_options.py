"""Monitoring options of the commands that run an aggregator. Light, since every ``nonn`` command imports it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nonn.arguments import not_negative, port

if TYPE_CHECKING:
    from nonn.aggregator.monitoring.options import ObservingOptions

__all__ = ["add_observing_arguments", "observing_of"]


def add_observing_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ``observing_of`` reads."""
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
        action="append",
        default=[],
        metavar="NAME",
        help="further host name under which plain HTTP is asked, for example of a proxy; may be repeated",
    )
    group.add_argument("--switches", type=int, help=argparse.SUPPRESS)  # a socket that nonn up lets it inherit
    group.add_argument(
        "--drift-rate",
        type=not_negative,
        metavar="HZ",
        help="most samples per second that the drift alarm tests; 0 turns it off (default: 10)",
    )


def observing_of(args: argparse.Namespace) -> ObservingOptions:
    """The options in the form that ``nonn.aggregator`` accepts.

    Raises:
        ConfigError: an option is invalid.
    """
    from nonn.aggregator.monitoring.options import ObservingOptions

    return ObservingOptions(
        http_host=args.http_host,
        http_port=args.http_port,
        http_names=tuple(args.http_name),
        http_tls=args.http_tls,
        switches=args.switches,
        drift_rate=args.drift_rate,
        trace=args.trace,
        insecure=args.insecure,
    )
