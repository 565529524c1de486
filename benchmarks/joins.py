"""Requests to join that attack the nodes of a cluster: with their addresses, with their ids, and in floods.

The attacker has the token with which nodes join, and runs in a separate process::

    python -m benchmarks.joins HOST:PORT TOKEN_FILE VICTIM:PORT … --seconds 5

Each of its connections sends, in turn: a new id with the address of a node, in every spelling; the id of a node with
another key; texts of 10 kB; an address at which nothing answers; and a new id that dials out, which takes a lease.
Clients ask meanwhile. No request may fail and no node may leave an answer; the leases of the attacker stay within the
quota of its network address, and memory and log within limits. Afterwards a node is killed and started again, and the
aggregator is stopped for two leases: no node is to blame, and none may leave.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks import slow, storm
from benchmarks.endurance import DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.aggregator.membership.leases import MAX_OF_CALLER
from nonn.client import Client
from nonn.rpc.guard import Tokens
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.rpc.v1 import fleet_pb2_grpc
from tests.fleets import Fleet, members
from tests.serving import TIMEOUT_S, until

__all__ = ["SECTIONS", "requests"]

VICTIMS = 4
CONNECTIONS = 4
SECONDS = 5.0
SETTLE_S = 3.0
LEASE_S = 3.0
PAUSE_S = 2 * LEASE_S
START_S = 300.0  # longest start of the nodes, on a busy machine
KEPT_MB = 30  # memory that the attack may leave behind
LINES = 200  # of the log, from an attack; a refusal is logged once in ten seconds
LONG = "x" * 10_000
SILENT = "was silent until its lease ended"  # in the log


def spellings(address: str) -> tuple[str, ...]:
    """Texts for one address on 127.0.0.1."""
    port = address.rpartition(":")[2]
    hosts = ("127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]", "localhost", "0.0.0.0")
    return tuple(f"{host}:{port}" for host in hosts)


def requests(victims: Sequence[str]) -> Iterator[Any]:
    """Requests to join, for ever.

    Args:
        victims: ``id=host:port`` of the nodes.
    """
    for number in itertools.count():
        for victim in victims:
            name, _, address = victim.partition("=")
            for student, text in enumerate(spellings(address)):
                yield _request(f"evil-{number}", address=text, student=student)
            yield _request(name, address=address)
            yield _request(name, dials_out=True)
        yield _request(f"evil-{number}", address="127.0.0.1:1")
        yield _request(f"evil-{number}", address=f"{LONG}:1")
        yield _request(f"evil-{number}", capabilities=pb.Capabilities(version=LONG, runtime=LONG, machine=LONG))
        yield _request(f"evil-{secrets.token_hex(8)}", dials_out=True)


def _request(node: str, **fields: Any) -> Any:
    return pb.RegisterRequest(node=node, instance=secrets.token_hex(8), fingerprint=secrets.token_hex(16), **fields)


def attack(address: str, token: Path, victims: Sequence[str], seconds: float) -> Counter[str]:
    """Sends requests to join for some seconds; returns how many of them got each status."""
    found, until_s = Counter[str](), time.monotonic() + seconds
    metadata = (("authorization", f"Bearer {Tokens(token).first}"),)

    def work() -> None:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            register = fleet_pb2_grpc.FleetStub(channel).Register  # type: ignore[no-untyped-call]
            for request in requests(victims):
                if time.monotonic() > until_s:
                    return
                try:
                    register(request, timeout=TIMEOUT_S, metadata=metadata)
                    found["OK"] += 1
                except grpc.RpcError as exc:
                    found[exc.code().name] += 1

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _joins(ground: Ground) -> Figures:
    names = [f"victim-{i}" for i in range(VICTIMS)]
    with contextlib.ExitStack() as stack:
        fleet = Fleet(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn-joins-"))), stack)
        running, address = fleet.aggregator(ground.bundle, "--lease", LEASE_S, "--deadline", DEADLINE_S)
        nodes = {name: fleet.node(name, address) for name in names}
        hurried = stack.enter_context(Client(address, slow.CLIENT_DEADLINE_S))
        client = fleet.client(address)
        until(lambda: members(client).keys() == nodes.keys(), START_S)
        students = members(client)
        everyone = sum(1 << student for student in students.values())
        victims = [f"{name}={node.ready['address']}" for name, node in nodes.items()]
        calm = slow.period(hurried, ground.inputs, ground.args.concurrency, SETTLE_S)
        process = psutil.Process(running.child.pid)
        before_mb, lines = process.memory_info().rss / 1e6, running.log.read_bytes().count(b"\n")
        command = [sys.executable, "-m", "benchmarks.joins", address, str(fleet.token), *victims]
        attacker = stack.enter_context(
            subprocess.Popen([*command, "--seconds", str(SECONDS)], stdout=subprocess.PIPE, text=True)
        )
        stack.callback(attacker.kill)
        records = slow.period(hurried, ground.inputs, ground.args.concurrency, SECONDS + SETTLE_S)
        assert attacker.stdout is not None
        statuses = json.loads(attacker.stdout.read())
        kept = members(client)
        name, start = names[0], time.monotonic()
        nodes[name].end(signal.SIGKILL)
        fleet.node(name, address)
        until(lambda: members(client) == students and client.infer(ground.inputs[:1]).mask == everyone, START_S)
        back_s = time.monotonic() - start
        silent = running.log.read_text().count(SILENT)
        running.child.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        running.child.send_signal(signal.SIGCONT)
        paused = slow.period(hurried, ground.inputs, ground.args.concurrency, SETTLE_S)
        return {
            "joins_statuses": statuses,
            "joins_requests": len(records),
            "joins_failed": sum(record.answer is None for record in records),
            "joins_failures": reasons(records),
            "joins_calm_without_percent": _without(calm, everyone),
            "joins_without_percent": _without(records, everyone),
            "joins_nodes_lost": sorted(students.keys() - kept.keys()),
            "joins_kept_mb": process.memory_info().rss / 1e6 - before_mb,
            "joins_log_lines": running.log.read_bytes().count(b"\n") - lines,
            "joins_back_s": back_s,
            "joins_pause_failed": sum(record.answer is None for record in paused),
            "joins_pause_without_percent": _without(paused, everyone),
            "joins_leases_ended": running.log.read_text().count(SILENT) - silent,
        }


def _without(records: list[storm.Record], everyone: int) -> float:
    """Percentage of answers that lack a node."""
    masks = [record.answer.mask for record in records if record.answer is not None]
    return 100 * sum(mask != everyone for mask in masks) / max(1, len(masks))


SECTIONS = (
    Section(
        "joins",
        _joins,
        {
            "requests to join fail no request of a client": lambda f: f["joins_failed"] == 0,
            "requests to join take no node out": lambda f: (
                not f["joins_nodes_lost"] and f["joins_without_percent"] <= f["joins_calm_without_percent"] + 1
            ),
            "most requests of an attacker to join are refused": lambda f: (
                0 < f["joins_statuses"].get("OK", 0) <= MAX_OF_CALLER < sum(f["joins_statuses"].values())
            ),
            "requests to join leave no memory behind": lambda f: f["joins_kept_mb"] <= KEPT_MB,
            "requests to join do not fill the log": lambda f: f["joins_log_lines"] <= LINES,
            "after a flood of requests to join a node joins again": lambda f: f["joins_back_s"] < START_S,
            "a pause of two leases ends no lease": lambda f: (
                f["joins_pause_failed"] == f["joins_leases_ended"] == 0
                and f["joins_pause_without_percent"] <= f["joins_calm_without_percent"] + 1
            ),
        },
    ),
)


def main() -> None:
    """Attacks as the command line says, and prints how many requests got each status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("address")
    parser.add_argument("token", type=Path)
    parser.add_argument("victims", nargs="+", metavar="ID=HOST:PORT")
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    os.nice(19)  # a real attacker has its own processors
    print(json.dumps(attack(args.address, args.token, args.victims, args.seconds)), flush=True)


if __name__ == "__main__":
    main()
