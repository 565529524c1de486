"""``nonn up``: a whole cluster on this machine, with a live table of its nodes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nonn.arguments import count, existing, port
from nonn.cli._policy_options import add_policy_arguments, policy_of

if TYPE_CHECKING:
    from rich.table import Table

    from nonn.bundle import Bundle
    from nonn.client import Client
    from nonn.cluster import LocalCluster

SUMMARY = "run a whole cluster on this machine: one process per device, and the aggregator"

REFRESH_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=existing, metavar="BUNDLE", help="bundle to serve")
    parser.add_argument("--port", type=port, default=0, help="port of the aggregator; 0, the default, is any free one")
    add_policy_arguments(parser)
    parser.add_argument(
        "--http-port", type=port, metavar="PORT", help="serve dashboard and metrics on this port; 0 is any free one"
    )
    parser.add_argument(
        "--tls", type=Path, metavar="DIR", help="use TLS with the authority in this folder, created if missing"
    )
    parser.add_argument("--threads", type=count, default=1, help="threads of one inference (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Starts the cluster and shows it until Ctrl-C or SIGTERM, neither of which is an error."""
    import signal
    import threading

    from rich.console import Console
    from rich.live import Live

    from nonn.bundle import load_bundle
    from nonn.client import Client
    from nonn.cluster import LocalCluster
    from nonn.rpc.address import check_free

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # An exception also ends a start that is under way; the cluster's exit then ends every child. SIGINT
    # too, since a shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    console, forever = Console(), threading.Event()
    try:
        for port in filter(None, (args.port, args.http_port)):
            check_free(port)
        bundle = load_bundle(args.bundle)
        with (
            LocalCluster(
                args.bundle,
                port=args.port,
                policy=policy_of(args),
                threads=args.threads,
                http_port=args.http_port,
                tls=args.tls,
            ) as cluster,
            Client(cluster.address, tls=cluster.client_tls) as client,
        ):
            if console.is_terminal:
                with Live(_table(bundle, cluster, client), console=console, auto_refresh=False) as live:
                    while not forever.wait(REFRESH_S):
                        live.update(_table(bundle, cluster, client), refresh=True)
            console.print(_table(bundle, cluster, client))
            forever.wait()
    except KeyboardInterrupt:
        console.print("stopped: every process has ended")
    return 0


def _table(bundle: Bundle, cluster: LocalCluster, client: Client) -> Table:
    """A row for each node: state of its process, and what the aggregator reports about it."""
    import numpy as np
    from rich.table import Table

    from nonn.errors import NonnError

    try:
        known = {node["student"]: node for node in client.metadata().nodes}
    except NonnError:
        known = {}  # the aggregator is down; the processes are still shown
    value = bundle.table.importance(np.array(bundle.p_fail))
    table = Table(
        title=f"{bundle.manifest.experiment} at {cluster.address}",
        caption="value: points of accuracy lost if the device fails\n"
        + (f"dashboard: {cluster.http_address}/\n" if cluster.http_address else "")
        + f"try: nonn predict {cluster.address} IMAGE"
        + (f" --tls {cluster.client_tls}" if cluster.client_tls else ""),
    )
    for column in ("device", "part", "state", "pid", "address", "latency", "answered", "value, points"):
        table.add_column(column, justify="left" if column in ("state", "address") else "right")
    for state in cluster.states():
        node = known.get(state.node)
        doing = node["state"] if node and state.state == "up" else state.state
        asked = node["asked"] if node else 0
        table.add_row(
            str(state.node),
            str(state.part),
            f"[{'green' if doing == 'up' else 'red'}]{doing}",
            str(state.pid),
            state.address,
            f"{node['latency_s'] * 1e3:.1f} ms" if node and node["latency_s"] else "–",
            f"{node['answered'] / asked:.1%}" if node and asked else "–",
            f"{100 * value[state.node]:+.2f}",
        )
    return table
