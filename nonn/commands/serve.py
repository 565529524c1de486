"""``nonn serve``: the aggregator as a process.

When it answers requests it prints one line of JSON on standard output, and nothing else ever; its log is on standard
error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "run the aggregator over the nodes of an inventory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle that all nodes run")
    parser.add_argument(
        "--inventory", type=Path, required=True, metavar="FILE", help="TOML file with a [[node]] for each node"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to bind; 0, the default, is any free one")
    parser.add_argument(
        "--deadline", type=float, default=1.0, metavar="S", help="seconds that a request waits (default: %(default)s)"
    )
    parser.add_argument("--quorum", type=int, default=1, metavar="N", help="fewest answers (default: %(default)s)")
    parser.add_argument("--insecure", action="store_true", help="serve beyond loopback without TLS")
    parser.add_argument("--watch-stdin", action="store_true", help="end when standard input closes")


def run(args: argparse.Namespace) -> int:
    """Serves until told to end."""
    import asyncio
    import json
    import logging
    import os
    import sys

    # gRPC's own log tells a taken port in C++; our error tells it too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from nonn.aggregator.inventory import load_inventory
    from nonn.aggregator.policy import PolicyConfig
    from nonn.aggregator.server import FusedModel
    from nonn.aggregator.service import Aggregator
    from nonn.bundle import load_bundle
    from nonn.rpc.server import serve

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    bundle = load_bundle(args.bundle)
    nodes = load_inventory(args.inventory, bundle.num_devices)
    aggregator = Aggregator(bundle, nodes, PolicyConfig(deadline_s=args.deadline, quorum=args.quorum))

    def announce(address: str) -> None:
        line = {"event": "ready", "address": address, "pid": os.getpid(), "bundle": bundle.hash, "nodes": len(nodes)}
        print(json.dumps(line), flush=True)

    asyncio.run(
        serve(
            FusedModel(aggregator),
            host=args.host,
            port=args.port,
            insecure=args.insecure,
            watch_stdin=args.watch_stdin,
            on_ready=announce,
        )
    )
    return 0
