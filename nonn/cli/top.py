"""``nonn top``: a live table of a running cluster, from its aggregator's metadata."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nonn.arguments import addresses, seconds
from nonn.cli._client_options import add_client_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from nonn.aggregator.monitoring.state import ClusterState
    from nonn.client import Client

SUMMARY = "watch a running cluster: its nodes and its accuracy now"

REFRESH_S = 1.0
FAULTS = 5
FILE_WIDTH = 140  # for a file or a pipe
NARROW = 110  # terminals with fewer columns do not show the last figures
STYLES = {"up": "blue", "unknown": "dim", "suspect": "yellow", "out": "red"}  # next to the state's name
SPARKS = " ▁▂▃▄▅▆▇█"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "address", type=addresses, metavar="ADDRESS", help="host:port of the aggregator; several with commas"
    )
    parser.add_argument("--once", action="store_true", help="print one table and exit")
    parser.add_argument("--json", action="store_true", help="print only one JSON object and exit")
    parser.add_argument("--timeout", type=seconds, default=5.0, metavar="S", help="seconds (default: %(default)s)")
    add_client_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Shows the cluster until Ctrl-C, which is not an error; shows it once if stdout is not a terminal."""
    import json
    import os
    import signal
    import threading

    from nonn.client import Client
    from nonn.errors import UnreachableError

    with Client(args.address, args.timeout, tls=args.tls, token_file=args.token_file, insecure=args.insecure) as client:
        if args.json:
            print(json.dumps(_reported(client)))
            return 0
        state = _state(client)
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = FILE_WIDTH
        if args.once or not console.is_terminal:
            console.print(_view(state, client.aggregator, console.width))
            return 0

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, interrupt)  # so that the terminal leaves the alternate screen
        forever = threading.Event()
        try:
            with Live(
                _view(state, client.aggregator, console.width), console=console, screen=True, auto_refresh=False
            ) as live:
                while not forever.wait(REFRESH_S):
                    live.update(_next(client, console.width), refresh=True)
        except KeyboardInterrupt:
            last = _next(client, console.width)
            console.print(last)
            if isinstance(last, Text):  # the aggregator does not answer
                return UnreachableError.exit_code
    return 0


def _reported(client: Client) -> Mapping[str, object]:
    """The state in the aggregator's metadata.

    Raises:
        ConfigError: the server does not report one.
        UnreachableError: the address does not answer.
    """
    from nonn.errors import ConfigError

    state = client.metadata().state
    if not state:
        raise ConfigError(
            f"{client.address}: this server does not report the state of its nodes; is it a `nonn serve`?"
        )
    return state


def _state(client: Client) -> ClusterState:
    """The state as a document.

    Raises:
        DataError: it lacks a field, or a value is malformed.
    """
    from nonn.aggregator.monitoring.state import ClusterState
    from nonn.documents import from_json

    return from_json(ClusterState, _reported(client), f"{client.address}: state")


def _next(client: Client, width: int) -> Group | Text:
    """The current view, or the error as text, so that a restart of the aggregator does not end `nonn top`."""
    from rich.text import Text

    from nonn.errors import NonnError

    try:
        return _view(_state(client), client.aggregator, width)
    except NonnError as exc:
        return Text(f"{exc}", style="red")


def _view(state: ClusterState, address: str, width: int) -> Group:
    """The whole screen."""
    from rich.console import Group

    return Group(_summary(state, address), _table(state, width), *_faults(state))


def _summary(state: ClusterState, address: str) -> Text:
    """Accuracy, alarms and requests of the cluster."""
    from rich.text import Text

    accuracy, requests = state.accuracy, state.requests
    up = sum(node.state == "up" for node in state.nodes)
    text = Text(f"{state.experiment} at {address}, bundle {state.bundle[:12]}\n")
    text.append(f"accuracy now {accuracy.now:.1%}", style="bold")
    text.append(_between(accuracy.interval))
    text.append(f" with {state.students_up} of {state.devices} students on {up} of {len(state.nodes)} nodes; ")
    if accuracy.next_worst_node:
        text.append(f"{accuracy.next_worst:.1%}", style="bold")
        text.append(f"{_between(accuracy.next_worst_interval)} if {accuracy.next_worst_node} fails next, ")
        text.append(f"{accuracy.next_mean:.1%}{_between(accuracy.next_mean_interval)} on average\n")
    else:
        text.append("no node is up\n", style="red")
    if not state.ready:
        text.append(f"below the quorum of {state.quorum}: requests fail\n", style="red")
    for node in state.drift.alarms:
        text.append(f"{node} answers, but agrees less with the others than as built\n", style="red")
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in requests.by_outcome.items()) or "none yet"
    text.append(f"requests {requests.per_second:.1f}/s ({outcomes}); latency ")
    text.append(f"p50 {_ms(requests.latency_p50_s)}, p99 {_ms(requests.latency_p99_s)} ")
    text.append(_spark(requests.seconds.latency_p50_s), style="blue")
    return text


def _between(interval: Sequence[float] | None) -> str:
    """An interval in brackets; older aggregators have none."""
    return " ({:.1%} to {:.1%})".format(*interval) if interval else ""


def _caption(state: ClusterState) -> str:
    """What the values of nodes mean, and what one test sample is worth."""
    caption = "value: points of accuracy lost if the node fails, or gained if it returns"
    samples = state.accuracy.samples
    return caption if samples is None else f"{caption}; one of {samples:,} test samples is {100 / samples:.2g} points"


def _table(state: ClusterState, width: int) -> Table:
    """A row for each node."""
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=_caption(state))
    columns = ["node", "part", "state", "p50", "p99", "answered", "value", "agrees", "memory", "version", "address"]
    for name in columns if width >= NARROW else columns[:7]:
        table.add_column(name, justify="left" if name in ("node", "state", "version", "address") else "right")
    for node in state.nodes:
        drift, share, memory = node.drift, node.answered_share, node.rss_bytes
        style = "magenta" if drift.alarm else STYLES.get(node.state, "")
        cells: list[str | Text] = [
            node.id,
            str(node.part),
            Text(node.state + (", drifting" if drift.alarm else ""), style=style),
            _ms(node.latency_p50_s),
            _ms(node.latency_p99_s),
            "–" if share is None else f"{share:.1%}",
            f"{100 * node.value:+.2f}",
            "–" if drift.agreement is None else f"{drift.agreement:.0%} of {drift.expected or 0:.0%}",
            "–" if memory is None else f"{memory / 1e6:.0f} MB",
            node.version or "–",
            node.address,
        ]
        # As text, so that an id or address is not read as markup.
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells[: len(table.columns)]))
    return table


def _faults(state: ClusterState) -> list[Text]:
    """The newest faults, one line each."""
    from datetime import datetime

    from rich.text import Text

    lines = []
    for fault in state.faults[:FAULTS]:
        when = datetime.fromtimestamp(fault.time).strftime("%H:%M:%S")
        change = " → ".join(filter(None, (fault.before, fault.after or "removed")))
        lines.append(Text(f"{when} {fault.node or 'all nodes'} {change} {fault.reason}".rstrip(), style="dim"))
    return lines


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _spark(values: Sequence[float | None]) -> str:
    """A line of bars; seconds without a value are blank."""
    top = max((value for value in values if value is not None), default=0.0)
    bars = len(SPARKS) - 1
    return "".join(" " if v is None or not top else SPARKS[max(1, round(bars * v / top))] for v in values)
