"""``nonn up``: a whole cluster on this machine, with a live table of its nodes."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from nonn.arguments import count, existing, path, port
from nonn.cli._policy_options import add_policy_arguments, policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.table import Table

    from nonn.bundle import Bundle
    from nonn.client import Client
    from nonn.cluster import LocalCluster

SUMMARY = "run a whole cluster on this machine: one process per device, and the aggregator"

REFRESH_S = 0.5
LEAST_WIDTH = {"part": 100, "pid": 76, "latency": 66}  # of the terminal, for a column of the table to be shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("bundle", type=existing, metavar="BUNDLE", help="bundle to serve")
    parser.add_argument("--port", type=port, default=0, help="port of the aggregator; 0, the default, is any free one")
    add_policy_arguments(parser)
    parser.add_argument(
        "--http-port", type=port, metavar="PORT", help="serve dashboard and metrics on this port; 0 is any free one"
    )
    parser.add_argument(
        "--tls", type=path, metavar="DIR", help="use TLS with the authority in this folder, created if missing"
    )
    parser.add_argument("--threads", type=count, default=1, help="threads of one inference (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Starts the cluster and shows it until Ctrl-C or SIGTERM, neither of which is an error."""
    import signal

    from rich.console import Console

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
    console = Console()
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
                switches=True,
            ) as cluster,
            Client(cluster.address, tls=cluster.client_tls) as client,
        ):
            _show(bundle, cluster, client, console)
    except KeyboardInterrupt:
        console.print("stopped: every process has ended")
    return 0


def _show(bundle: Bundle, cluster: LocalCluster, client: Client, console: Console) -> None:
    """Shows the cluster until an exception: a live table in a terminal, otherwise one table."""
    from rich.live import Live

    table = _table(bundle, cluster, client, console)
    if not console.is_terminal:
        console.print(table)
        with _keys(cluster, keys=False) as pressed:
            while True:
                pressed(None)
    with Live(table, console=console, auto_refresh=False) as live, _keys(cluster, keys=True) as pressed:
        while True:
            if pressed(REFRESH_S) == "r":
                _restart(cluster, console)
            live.update(_table(bundle, cluster, client, console), refresh=True)


@contextlib.contextmanager
def _keys(cluster: LocalCluster, *, keys: bool) -> Iterator[Callable[[float | None], str]]:
    """Yields a function that waits some seconds, or for ever, for a key, and meanwhile switches devices for the page.

    It returns the key; nothing without one, without ``keys`` or a terminal, or after a device was switched.
    """
    import os
    import select
    import sys
    import time

    board, watched = cluster.board, list[Any]([cluster.board] if cluster.board else [])
    descriptor = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    terminal = keys and descriptor >= 0 and _in_foreground(descriptor)

    def pressed(wait_s: float | None) -> str:
        ready = select.select([*watched, descriptor] if terminal else watched, [], [], wait_s)[0]
        if board in ready and board is not None:
            board.handle()
        elif ready and not (key := os.read(descriptor, 1).decode(errors="replace")):
            time.sleep(wait_s or 0)  # the end of input
        elif ready:
            return key
        return ""

    if not terminal:
        yield pressed
        return
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _in_foreground(terminal: int) -> bool:
    """Whether this process may read the terminal: the kernel stops a background job that does."""
    import os

    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the terminal that controls this process
        return True


def _restart(cluster: LocalCluster, console: Console) -> None:
    """Starts the devices again that do not run."""
    from nonn.errors import NonnError

    for state in cluster.states():
        if state.state != "up":
            try:
                cluster.restart(state.node)
            except NonnError as exc:
                console.print(f"device {state.node}: {exc}", markup=False)


def _table(bundle: Bundle, cluster: LocalCluster, client: Client, console: Console) -> Table:
    """A row for each node: state of its process, and what the aggregator reports about it."""
    import numpy as np
    from rich.table import Table

    from nonn.errors import NonnError

    try:
        known = {node["student"]: node for node in client.metadata().nodes}
    except NonnError:
        known = {}  # the aggregator is down; the processes are still shown
    value = bundle.accuracies.importance(np.array(bundle.p_fail))
    table = Table(
        title=f"{bundle.manifest.experiment} at {cluster.address}",
        caption="value: points of accuracy lost if the device fails\n"
        + (f"dashboard: {cluster.page}\n" if cluster.page else "")
        + ("r: restart devices that are down; Ctrl-C: end\n" if console.is_terminal else "")
        + f"try: nonn predict {cluster.address} IMAGE"
        + (f" --tls {cluster.client_tls}" if cluster.client_tls else ""),
    )
    columns = ["device", "part", "state", "pid", "address", "latency", "answered", "value"]
    columns = [column for column in columns if console.width >= LEAST_WIDTH.get(column, 0)]
    for column in columns:
        table.add_column(column, justify="left" if column in ("state", "address") else "right", no_wrap=True)
    for state in cluster.states():
        node = known.get(state.node)
        doing = node["state"] if node and state.state == "up" else state.state
        asked = node["asked"] if node else 0
        cells = {
            "device": str(state.node),
            "part": str(state.part),
            "state": f"[{'green' if doing == 'up' else 'red'}]{doing}",
            "pid": str(state.pid),
            "address": state.address,
            "latency": f"{node['latency_s'] * 1e3:.1f} ms" if node and node["latency_s"] else "–",
            "answered": f"{node['answered'] / asked:.1%}" if node and asked else "–",
            "value": f"{100 * value[state.node]:+.2f}",
        }
        table.add_row(*(cells[column] for column in columns))
    return table
