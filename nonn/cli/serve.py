"""``nonn serve``: the aggregator as a process.

When it is ready it prints one line of JSON on standard output, its only output there; its log is on standard
error.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from nonn.arguments import add_field, count, existing, from_args, path, port, usage
from nonn.cli._observing_options import add_observing_arguments
from nonn.cli._pairing_options import add_pairing_arguments, pairing_of
from nonn.cli._policy_options import add_policy_arguments, policy_of
from nonn.telemetry.log import add_log_arguments

if TYPE_CHECKING:
    from nonn.fleet.served import ServeOptions
    from nonn.rpc.server import Attend
    from nonn.telemetry.systemd import Watchdog

_NODE_PORT = 50061  # of the first node of a written inventory

SUMMARY = "run the aggregator over the nodes of an inventory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=existing, metavar="BUNDLE", help="bundle that all nodes run")
    parser.add_argument("--inventory", type=existing, metavar="FILE", help="TOML file with a [[node]] for each node")
    parser.add_argument(
        "--write-inventory", type=path, metavar="FILE", help="write an inventory of the bundle's devices, and exit"
    )
    parser.add_argument(
        "--node-hosts", nargs="+", metavar="HOST", help="hosts in that inventory, in turn (default: 127.0.0.1)"
    )
    parser.add_argument("--joins", action="store_true", help="accept nodes that join with nonn-device join")
    parser.add_argument(
        "--state", type=path, metavar="DIR", help="folder of its bundles, for nonn fleet push and rollback"
    )
    add_field(parser, "--lease", "nonn.aggregator.membership.options:JoiningOptions.lease_s", "S")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    parser.add_argument("--port", type=port, default=0, help="port to bind; 0, the default, is any free one")
    add_policy_arguments(parser)
    parser.add_argument(
        "--tls", type=existing, metavar="DIR", help="the aggregator's folder written by nonn certs; enables TLS"
    )
    parser.add_argument("--token-file", type=existing, metavar="FILE", help="accepted tokens of clients")
    parser.add_argument(
        "--join-token-file", type=existing, metavar="FILE", help="accepted tokens of nodes; required without TLS"
    )
    _add_queue_arguments(parser)
    _add_sensing_arguments(parser)
    parser.add_argument("--insecure", action="store_true", help="allow serving beyond loopback without TLS")
    parser.add_argument("--reflection", action="store_true", help="enable gRPC server reflection")
    parser.add_argument("--watch-stdin", action="store_true", help="exit when standard input closes")
    add_log_arguments(parser)
    add_observing_arguments(parser)
    add_pairing_arguments(parser)


def _add_queue_arguments(parser: argparse.ArgumentParser) -> None:
    """Batches, and limits of requests."""
    batching = "nonn.aggregator.batching:BatchConfig"
    add_field(parser, "--max-batch", f"{batching}.max_batch", "B")
    add_field(parser, "--max-delay-ms", f"{batching}.max_delay_s", "MS", unit=1e-3)
    add_field(parser, "--max-queue", f"{batching}.max_queue", "N")
    add_field(parser, "--max-samples", f"{batching}.max_samples", "N")
    add_field(parser, "--max-request-mb", f"{batching}.max_request_bytes", "MB", unit=1e6)
    parser.add_argument(
        "--max-queue-mb",
        type=count,
        default=64,
        metavar="MB",
        help="megabytes of requests that may wait or be under way (default: %(default)s)",
    )


def _add_sensing_arguments(parser: argparse.ArgumentParser) -> None:
    """Windows of nodes that sense."""
    sensing = "nonn.aggregator.sensing.hub:SensingOptions"
    add_field(parser, "--window-wait", f"{sensing}.wait_s", "S")
    add_field(parser, "--window-tolerance", f"{sensing}.tolerance_s", "S")
    add_field(parser, "--replay-speed", f"{sensing}.speed", "X")
    add_field(parser, "--accuracy-goal", f"{sensing}.accuracy_goal", "A")
    add_field(parser, "--duty-period", f"{sensing}.duty_period_s", "S")
    parser.add_argument("--raw", type=path, metavar="DIR", help="store raw samples of nodes with --send-raw")


def run(args: argparse.Namespace) -> int:
    """Serves until the process gets a signal to end."""
    if args.tls or args.pair:
        from nonn.security.handshake import log_failed_handshakes

        log_failed_handshakes()

    from nonn.errors import UsageError
    from nonn.rpc.address import check_bind
    from nonn.rpc.loop import run as run_loop
    from nonn.telemetry.log import configure_logging

    if args.write_inventory:
        _write_inventory(args)
        return 0
    configure_logging(args.log_format)
    pairing = pairing_of(args)
    options = options_of(args)
    check_bind(args.host, args.port)
    if args.state is not None and (args.inventory or args.trace or not args.joins):
        raise UsageError(
            "--state is for a fleet whose nodes all join: add --joins, and leave out --inventory and --trace"
        )
    run_loop((_serve_one if args.state is None else _serve_fleet)(args, options, pairing.attend if pairing else None))
    return 0


def _write_inventory(args: argparse.Namespace) -> None:
    """Writes an inventory with a node for each device, and prints the commands that start them.

    Raises:
        UsageError: the file exists.
    """
    from nonn.aggregator.inventory import Node, write_inventory
    from nonn.bundle import load_bundle
    from nonn.errors import UsageError

    file, hosts = args.write_inventory, args.node_hosts or ["127.0.0.1"]
    if file.exists():
        raise UsageError(f"--write-inventory {file}: exists; name another file")
    nodes = []
    for i in range(load_bundle(args.bundle).num_devices):
        address = f"{hosts[i % len(hosts)]}:{_NODE_PORT + i // len(hosts)}"
        nodes.append(Node(id=f"node-{i}", address=address, student=i))
    write_inventory(file, nodes)
    print(f"wrote {file}; start its nodes, each on its host:")
    for node in nodes:
        host, _, port = node.address.rpartition(":")
        elsewhere = f" --host {host} --tls DIR" * (host != "127.0.0.1")
        print(f"  nonn-device serve {args.bundle} --student {node.student} --port {port}{elsewhere}")
    print(f"then: nonn serve {args.bundle} --inventory {file}")


def options_of(args: argparse.Namespace) -> ServeOptions:
    """The options that concern the bundle.

    Raises:
        ConfigError: the file of the policy is invalid.
        UsageError: an option is invalid, or two contradict each other.
    """
    from nonn.aggregator.batching import BatchConfig
    from nonn.aggregator.membership.options import JoiningOptions
    from nonn.aggregator.monitoring.options import ObservingOptions
    from nonn.aggregator.sensing.hub import SensingOptions
    from nonn.errors import UsageError
    from nonn.fleet.served import ServeOptions

    if args.http_tls and args.tls is None:
        raise UsageError("--http-tls requires --tls with a folder of nonn certs")
    policy = policy_of(args)
    with usage():
        return ServeOptions(
            inventory=args.inventory,
            joining=from_args(JoiningOptions, args),
            observing=from_args(ObservingOptions, args),
            policy=policy,
            batching=from_args(BatchConfig, args),
            sensing=from_args(SensingOptions, args),
        )


async def _serve_one(args: argparse.Namespace, options: ServeOptions, pairing: Attend | None) -> None:
    """Serves one bundle."""
    import threading

    from nonn.aggregator.inventory import warn_of_unknown_hosts
    from nonn.bundle import load_bundle
    from nonn.fleet.served import ServedBundle
    from nonn.rpc.endpoint import Endpoint
    from nonn.rpc.server import serve
    from nonn.telemetry.systemd import Watchdog

    served = ServedBundle(load_bundle(args.bundle), options)
    # In a thread that is not joined at exit: DNS may take seconds, or never return.
    threading.Thread(target=warn_of_unknown_hosts, args=(served.aggregator.nodes,), daemon=True).start()
    endpoint = Endpoint(served.model, args.max_queue_mb * 1_000_000, opened=False)
    async with Watchdog() as watchdog, served.watching(endpoint) as http:
        ready = _announce(args, bundle=served.bundle.hash, nodes=len(served.aggregator.nodes), http=http)
        keys = served.options()
        keys["attend"] = _watched(watchdog, keys["attend"], pairing)
        await serve(endpoint, **ready, **keys)


async def _serve_fleet(args: argparse.Namespace, options: ServeOptions, pairing: Attend | None) -> None:
    """Serves the current bundle of a state folder, and switches when it changes."""
    from nonn.fleet.bundles import Bundles
    from nonn.fleet.control import controlled
    from nonn.fleet.rollout import Rollout
    from nonn.fleet.servicer import FleetServicer
    from nonn.fleet.state import StateFolder
    from nonn.rpc.server import serve, shutdown_event
    from nonn.telemetry.systemd import Watchdog

    state, stop = StateFolder(args.state), shutdown_event(args.watch_stdin)
    bundle = state.first(args.bundle)
    bundles = Bundles(state, bundle, options, args.max_queue_mb * 1_000_000)
    rollout = Rollout(bundles)
    servicer = FleetServicer(rollout)
    async with Watchdog() as watchdog, controlled(rollout, state.socket), bundles.running(stop.set):
        ready = _announce(args, bundle=bundle.hash, nodes=0, http=bundles.http)
        keys = bundles.served.options() | {
            "services": [servicer.add_to, servicer.add_sensing_to],
            "attend": _watched(watchdog, pairing),
        }
        await serve(bundles.endpoint, stop=stop, **ready, **keys)


def _announce(args: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """Arguments of ``serve`` common to all aggregators, including the line printed when ready."""
    import json
    import os
    import sys

    def on_ready(address: str) -> None:
        print(json.dumps({"event": "ready", "pid": os.getpid(), **facts, "address": address}), flush=True)
        if sys.stderr is not None and sys.stderr.isatty():
            print(next_steps(address, facts.get("http") or "", tls=args.tls is not None), file=sys.stderr)

    return {
        "host": args.host,
        "port": args.port,
        "insecure": args.insecure,
        "watch_stdin": args.watch_stdin,
        "on_ready": on_ready,
        "reflection": args.reflection,
    }


def next_steps(address: str, http: str, *, tls: bool) -> str:
    """What to try with an aggregator that is ready.

    Args:
        address: ``host:port``.
        http: address of the dashboard; empty without one.
        tls: whether clients need certificates.
    """
    needed = " --tls CLIENT_FOLDER" * tls
    lines = [f"try: nonn predict {address} IMAGE{needed}", f"     nonn top {address}{needed}"]
    return "\n".join([*lines, *[f"dashboard: {http}/"] * bool(http)])


def _watched(watchdog: Watchdog, *attends: Attend | None) -> Attend:
    """Contexts that run next to the requests; once they are entered, systemd is notified that the service is ready."""
    import contextlib

    @contextlib.asynccontextmanager
    async def all_of_them(address: str, end: Callable[[], None]) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for attend in filter(None, attends):
                await stack.enter_async_context(attend(address, end))
            await stack.enter_async_context(watchdog.over(None, f"serves at {address}"))
            yield

    return all_of_them
