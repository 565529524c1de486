"""``nonn serve``: the aggregator as a process.

When it answers requests it prints one line of JSON on standard output, and nothing else ever; its log is on standard
error.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.cli._observing_options import add_observing_arguments
from nonn.cli._policy_options import add_policy_arguments, policy_of
from nonn.telemetry.log import add_log_arguments

if TYPE_CHECKING:
    from nonn.rpc.server import Attend
    from nonn.telemetry.systemd import Watchdog

SUMMARY = "run the aggregator over the nodes of an inventory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle that all nodes run")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="TOML file with a [[node]] for each node")
    parser.add_argument("--joins", action="store_true", help="let nodes join: nonn-device join")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="keep bundles there, for nonn fleet push and rollback"
    )
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
        "--max-delay-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="how long a request to an idle cluster waits for others",
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
    import json
    import math
    import os
    import threading

    if args.tls:
        from nonn.security.handshake import log_failed_handshakes

        log_failed_handshakes()
    # gRPC's own log tells a taken port in C++; our error tells it too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from nonn.aggregator.inventory import warn_of_unknown_hosts
    from nonn.bundle import load_bundle
    from nonn.errors import ConfigError
    from nonn.fleet.served import Deployment
    from nonn.rpc.address import check_bind
    from nonn.rpc.loop import run as run_loop
    from nonn.rpc.server import serve
    from nonn.telemetry.log import configure_logging
    from nonn.telemetry.systemd import Watchdog

    configure_logging(args.log_format)
    line = {"event": "ready", "pid": os.getpid()}
    policy = policy_of(args)
    if not 0 <= args.max_delay_ms < math.inf:
        raise ConfigError(f"--max-delay-ms {args.max_delay_ms:g}: must be a number of milliseconds, 0 or more")
    check_bind(args.host, args.port)

    def announce(address: str) -> None:
        print(json.dumps(line | {"address": address}), flush=True)

    common = {
        "host": args.host,
        "port": args.port,
        "insecure": args.insecure,
        "watch_stdin": args.watch_stdin,
        "on_ready": announce,
        "reflection": args.reflection,
    }

    async def serve_one() -> None:
        deployment = Deployment(load_bundle(args.bundle), args, policy)
        aggregator, observing, options = deployment.aggregator, deployment.observing, deployment.options()
        line.update(bundle=aggregator.bundle.hash, nodes=len(aggregator.nodes))
        # Beside the requests, and of no weight at the end: DNS may take seconds, or for ever.
        threading.Thread(target=warn_of_unknown_hosts, args=(aggregator.nodes,), daemon=True).start()
        async with (
            Watchdog() as watchdog,
            observing.watching(aggregator, insecure=args.insecure, tls=deployment.joining.tls) as http,
        ):
            line["http"] = http
            options["attend"] = _beside(options["attend"], watchdog)
            await serve(deployment.model, **common, **options)

    async def serve_fleet() -> None:
        from nonn.fleet.control import controlled
        from nonn.fleet.rollout import Rollout
        from nonn.fleet.state import State

        state = State(args.state)
        bundle = state.first(args.bundle)
        rollout = Rollout(state, bundle, args, policy)
        options = rollout.served.options() | {"services": [rollout.add_to]}
        async with Watchdog() as watchdog, controlled(rollout, state.socket), rollout.running():
            line.update(bundle=bundle.hash, nodes=0, http=rollout.http)
            options["attend"] = _beside(None, watchdog)
            await serve(rollout.model, **common, **options)

    if args.state is not None and (args.inventory or args.trace or not args.joins):
        raise ConfigError(
            "--state is for a fleet whose nodes all join: give --joins, and leave --inventory and --trace out"
        )
    run_loop(serve_one() if args.state is None else serve_fleet())
    return 0


def _beside(attend: Attend | None, watchdog: Watchdog) -> Attend:
    """What goes on beside the requests, after systemd has been told that they are answered."""
    import contextlib

    @contextlib.asynccontextmanager
    async def both(address: str, end: Callable[[], None]) -> AsyncIterator[None]:
        async with (
            attend(address, end) if attend else contextlib.nullcontext(),
            watchdog.over(None, f"serves at {address}"),
        ):
            yield

    return both
