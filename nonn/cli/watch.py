"""``nonn watch``: the answers of nodes that sense, one line for each window."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nonn.arguments import addresses, whole
from nonn.cli._client_options import add_client_arguments

if TYPE_CHECKING:
    from nonn.streams import WindowAnswer

SUMMARY = "follow the answers of nodes that measure themselves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "address", type=addresses, metavar="ADDRESS", help="host:port of the aggregator, or several with commas"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--count", type=whole(0), default=0, metavar="N", help="exit after N answers (default: never)")
    add_client_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints answers until Ctrl-C, or until there are as many as wanted."""
    import contextlib
    import itertools
    import json

    from nonn.client import Client

    quiet = contextlib.suppress(KeyboardInterrupt, BrokenPipeError)
    with quiet, Client(args.address, tls=args.tls, token_file=args.token_file, insecure=args.insecure) as client:
        for answer in itertools.islice(client.watch(), args.count or None):
            print(json.dumps(answer.to_json()) if args.json else as_text(answer), flush=True)
    return 0


def as_text(answer: WindowAnswer) -> str:
    """One line: time, label (smoothed if the bundle says so), how good it is, its devices, why others are missing."""
    from datetime import datetime

    at = datetime.fromtimestamp(answer.time).strftime("%H:%M:%S")
    devices = ",".join(map(str, answer.devices)) or "none"
    missing = "; ".join(f"{node}: {why}" for node, why in answer.missing.items())
    said = answer.smoothed or answer
    low, high = said.interval
    text = (
        f"{said.label}  confidence {said.confidence:.0%}  accuracy {said.expected_accuracy:.1%} "
        f"({low:.1%} to {high:.1%})"
        if answer.label
        else "no answer"
    )
    if answer.smoothed and answer.label != said.label:
        text += f"  [this window alone: {answer.label}]"
    lost = f"  [{answer.skipped} answers lost]" if answer.skipped else ""
    return f"{at}  {text}  devices {devices}  {1e3 * answer.delay_s:.0f} ms{f'  ({missing})' if missing else ''}{lost}"
