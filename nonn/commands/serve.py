"""``nonn serve``: the aggregator as a process.

When it answers requests it prints one line of JSON on standard output, and nothing else ever; its log is on standard
error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nonn.commands.observing import add_observing_arguments
from nonn.commands.policy import add_policy_arguments, policy_of
from nonn.log import add_log_arguments

SUMMARY = "run the aggregator over the nodes of an inventory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle that all nodes run")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="TOML file with a [[node]] for each node")
    parser.add_argument("--joins", action="store_true", help="let nodes join: nonn-device join")
    parser.add_argument("--lease", type=float, metavar="S", help="seconds that a silent node stays (default: 4.5)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to bind; 0, the default, is any free one")
    add_policy_arguments(parser)
    parser.add_argument("--tls", type=Path, metavar="DIR", help="the aggregator's folder of nonn certs; TLS only")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="tokens, one of which clients must show")
    parser.add_argument("--join-token-file", type=Path, metavar="FILE", help="tokens of nodes; needed without TLS")
    parser.add_argument(
        "--max-batch", type=int, default=64, metavar="B", help="samples of several clients that travel together"
    )
    parser.add_argument(
        "--max-delay-ms", type=float, default=0.0, metavar="MS", help="how long an idle cluster waits for company"
    )
    parser.add_argument(
        "--max-queue", type=int, default=4096, metavar="N", help="samples that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--max-samples", type=int, default=1024, metavar="N", help="samples of one request (default: %(default)s)"
    )
    parser.add_argument("--insecure", action="store_true", help="serve beyond loopback without TLS")
    parser.add_argument("--reflection", action="store_true", help="tell clients what there is to call")
    parser.add_argument("--watch-stdin", action="store_true", help="end when standard input closes")
    add_log_arguments(parser)
    add_observing_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until told to end."""
    import asyncio
    import json
    import os

    if args.tls:
        from nonn.rpc.handshake import log_failed_handshakes

        log_failed_handshakes()
    # gRPC's own log tells a taken port in C++; our error tells it too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from nonn.aggregator.batching import BatchConfig
    from nonn.aggregator.joining import Joining
    from nonn.aggregator.observing import Observing
    from nonn.aggregator.server import FusedModel
    from nonn.aggregator.service import Aggregator
    from nonn.bundle import load_bundle
    from nonn.errors import ConfigError
    from nonn.log import configure_logging
    from nonn.rpc.server import serve

    configure_logging(args.log_format)
    batching = BatchConfig(
        max_batch=args.max_batch,
        max_delay_s=args.max_delay_ms / 1e3,
        max_queue=args.max_queue,
        max_samples=args.max_samples,
    )
    bundle = load_bundle(args.bundle)
    joining = Joining(args.tls, args.token_file, args.join_token_file, args.lease, joins=args.joins)
    nodes = joining.inventory(args.inventory, bundle.num_devices)
    policy, served = policy_of(args), len({node.student for node in nodes})
    if not args.joins and policy.quorum > served:
        raise ConfigError(f"quorum = {policy.quorum}: the inventory has nodes for only {served} students")
    observing = Observing(bundle, args)
    aggregator = Aggregator(
        bundle,
        nodes,
        policy,
        observers=observing.observers,
        connect=observing.connect(joining.connect(bundle)),
    )
    line = {"event": "ready", "pid": os.getpid(), "bundle": bundle.hash, "nodes": len(nodes)}

    def announce(address: str) -> None:
        print(json.dumps(line | {"address": address}), flush=True)

    async def main() -> None:
        async with observing.watching(aggregator, insecure=args.insecure, tls=joining.tls) as http:
            line["http"] = http
            await serve(
                FusedModel(aggregator, observing.monitor.state, batching, observing.answered),
                host=args.host,
                port=args.port,
                insecure=args.insecure,
                watch_stdin=args.watch_stdin,
                on_ready=announce,
                reflection=args.reflection,
                interceptors=observing.interceptors,
                **joining.options(aggregator),
            )

    asyncio.run(main())
    return 0
