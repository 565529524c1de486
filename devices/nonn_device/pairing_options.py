"""The code of a device that pairs, from its operator, and where to look for the aggregator."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable

from nonn.arguments import usage
from nonn.errors import UsageError
from nonn.rpc.address import is_loopback, split_address, split_addresses
from nonn.security.pairing import PairingCode
from nonn.security.tls import check_id
from nonn_device.discovery import discovered
from nonn_device.pair import Found, Paired, default_id, pair, paired

__all__ = ["use_pairing"]

VARIABLE = "NONN_CODE"

_log = logging.getLogger(__name__)


def use_pairing(arguments: argparse.Namespace) -> None:
    """Fills in TLS folder, aggregator and address to bind of a device that is paired, or is to be paired now.

    Args:
        arguments: of ``nonn-device join``.

    Raises:
        UsageError: options contradict each other, or there is no code.
        NonnError: pairing fails.
    """
    asked = arguments.code is not None or arguments.pair_with is not None
    found = paired(arguments.data)
    if found is None:
        if arguments.aggregators and not asked:
            return  # without TLS
        if arguments.aggregators:
            raise UsageError("pairing gives the address of the aggregator: leave out AGGREGATOR; see --pair-with")
        found = _pair(arguments)
    elif asked:
        _log.warning(
            "%s: this device is paired already, so the code is not used; remove that folder to pair again", found.path
        )
    arguments.tls = found.path
    arguments.aggregators = arguments.aggregators or [found.aggregator]
    if arguments.host is None and not arguments.dial_out:
        hosts = [split_address(address)[0] for address in split_addresses(",".join(arguments.aggregators))]
        if not all(map(is_loopback, hosts)):
            arguments.host = "::" if any(":" in host for host in hosts) else "0.0.0.0"


def _pair(arguments: argparse.Namespace) -> Paired:
    """Pairs this device."""
    with usage():
        name = check_id(arguments.id) if arguments.id else default_id()
    code = PairingCode.parse(_code(arguments))
    candidates: Iterable[Found]
    if arguments.pair_with is None:
        _log.info("looking for the aggregator of this code by multicast DNS")
        candidates = discovered()
    else:
        candidates = [Found("", (address,)) for address in split_addresses(arguments.pair_with, "--pair-with")]
    found = pair(arguments.data, name, code, candidates)
    _log.info("paired as node '%s' with %s; the certificate is in %s", name, found.aggregator, found.path)
    return found


def _code(arguments: argparse.Namespace) -> str:
    """The text of the code.

    Raises:
        UsageError: there is none.
    """
    from_environment = os.environ.pop(VARIABLE, "")  # children do not inherit it
    if arguments.code == "-" and arguments.source == "-":
        raise UsageError("--source - reads standard input too: give the code in NONN_CODE")
    if arguments.code not in (None, "-"):
        _log.warning("every user of this machine can read --code in the list of processes; --code - reads it instead")
        return str(arguments.code)
    if arguments.code is None and from_environment:
        return from_environment
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if arguments.code is None and not terminal:
        raise UsageError(
            "this device is not paired yet, and there is no AGGREGATOR. To pair it, give the code of nonn serve --pair "
            "at a terminal, with --code - on standard input, or in NONN_CODE"
        )
    if terminal:
        print("code of nonn serve --pair: ", end="", file=sys.stderr, flush=True)
    # Not more than one line is taken: --watch-stdin watches what follows.
    return sys.stdin.readline(1000)
