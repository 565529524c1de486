"""``make soak``: checks the guarantees of a cluster under hours of faults, compressed into minutes.

::

    storm     requests under load while nodes are killed, stopped, slowed ten times, made to answer garbage, cut off and
              made silent, by a seeded schedule that leaves at least one node without a fault; then without faults.
              Memory, descriptors and the log of the aggregator stay flat
    mixed     requests of one sample to a thousand at once, with the same faults
    hung      cost of one hung node, one request after another
    pause     the aggregator is stopped for three deadlines
    crowd     connections that cancel streams as fast as they can, or do nothing at all
    frames    connections that attack with HTTP/2 frames of eight kinds
    slow      throughput with one node slow by 0.2, 0.3 and 0.9 s, compared with the same node dead
    flips     one bit flipped in one of twenty segments to and from all nodes but one
    greedy    one client with requests of 1,000 samples at nodes that take 4 ms a sample, and four others
    bytes     64 clients with the largest request at once, with the limits of the unit for systemd; and clients whose
              requests are expensive to parse
    liars     two nodes that send wrong features, in one way after another
    bad       one node that breaks the protocol in every way that gRPC lets through, refuses batches, or sends bad
              metadata
    bad-streams
              one node that breaks the protocol of streams, in one way after another
    node-frames
              one node that attacks with HTTP/2 frames of five kinds
    http      clients of the REST form, while nodes are killed, two clients send 1,000 samples at a time and bodies
              never end
    joins     requests to join with the addresses and ids of nodes, and in floods
    aggregators
              one of two aggregators is killed, ended or stopped for 3 s, compared with a single one
    boards    an emulated microcontroller behind a gateway is killed, cut off and reset
    clock     clocks of the aggregator and the nodes that jump by hours and years
    kills     SIGKILL at random lines of every write of state
    fuzz      mutated and random messages to a node and to the aggregator, and a node with forged replies

The answers to clients under load are compared with the offline fusion of the devices that they name, with the accuracy
of that set and with the bundle; where nodes lie, those without a liar. Writes ``benchmarks/results/soak.json`` with
machine, seed and code version; exits with 1 if a guarantee was broken. A section that fails with an error breaks a
guarantee, and the next ones run.

    python -m benchmarks.soak --again fuzz boards    # measures these sections again; the file names their version
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks import (
    aggregators,
    bad,
    bad_streams,
    boards,
    clocks,
    crowd,
    endurance,
    fuzz,
    joins,
    kills,
    memory,
    node_frames,
    rest,
    slow,
    storm,
    wrong,
)
from benchmarks.endurance import CLIENT_DEADLINE_S, DEADLINE_S
from benchmarks.section import Figures, Ground, Section
from nonn.client import Client
from nonn.files import write_json
from nonn.provenance import code_version, machine
from tests.toys import toy_bundle, toy_data

RESULTS = Path(__file__).parent / "results" / "soak.json"
NUM_DEVICES = 8
WIDTH = 16  # features of a student, enough to contradict each other
WARM_UP = 200

EVERY_ANSWER = "every answer is the offline fusion of its mask, with its accuracy and bundle"
TO_ITS_END = "runs to its end"

SECTIONS: tuple[Section, ...] = (
    *endurance.SECTIONS,
    *crowd.SECTIONS,
    *slow.SECTIONS,
    *wrong.SECTIONS,
    *memory.SECTIONS,
    *bad.SECTIONS,
    *bad_streams.SECTIONS,
    *node_frames.SECTIONS,
    *rest.SECTIONS,
    *joins.SECTIONS,
    *aggregators.SECTIONS,
    *boards.SECTIONS,
    *clocks.SECTIONS,
    *kills.SECTIONS,
    *fuzz.SECTIONS,
)


def run(sections: tuple[Section, ...], ground: Ground) -> Figures:
    """Runs sections one after another; returns their figures, what each took, and the guarantees that were broken."""
    figures: Figures = {"answers": 0, "answers_wrong": 0, "section_s": {}, "errors": {}}
    broken = list[str]()
    for section in sections:
        start, found = time.monotonic(), Figures()
        with storm.history() as records:
            try:
                found = section.run(ground)
                broken += section.broken(found)
            except Exception as exc:
                traceback.print_exc()
                figures["errors"][section.name] = f"{type(exc).__name__}: {exc}"
                broken.append(f"{section.name} {TO_ITS_END}")
            figures["answers"] += sum(record.answer is not None for record in records)
            figures["answers_wrong"] += len(storm.wrong_answers(ground.bundle, records))
        figures["section_s"][section.name] = round(time.monotonic() - start, 1)
        report(f"{section.name} ({figures['section_s'][section.name]} s)", found)
        figures |= found
    if figures["answers_wrong"]:
        broken.append(EVERY_ANSWER)
    return figures | {"broken": broken}


def merged(before: Figures, again: Figures) -> Figures:
    """Results in which some sections were measured again; ``answers`` are those of all runs.

    Args:
        before: results of all sections.
        again: results of some of them, with their versions.
    """
    figures = before | again
    for key in ("answers", "answers_wrong"):
        figures[key] = before[key] + again[key]
    names = again["section_s"]
    errors = {name: error for name, error in before["errors"].items() if name not in names}
    figures |= {"section_s": before["section_s"] | names, "errors": errors | again["errors"]}
    ran = [section for section in SECTIONS if section.name not in figures["errors"]]
    figures["broken"] = [promise for section in ran for promise in section.broken(figures)]
    figures["broken"] += [f"{name} {TO_ITS_END}" for name in figures["errors"]]
    figures["broken"] += [EVERY_ANSWER] if figures["answers_wrong"] else []
    return figures


def report(title: str, figures: Figures) -> None:
    """Prints figures."""
    print(f"{title}:")
    for key, value in figures.items():
        print(f"  {key:32} {value:.4g}" if isinstance(value, float) else f"  {key:32} {value}", flush=True)


def main() -> int:
    """Runs the sections and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [section.name for section in SECTIONS]
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--only", nargs="+", choices=names, metavar="SECTION", help="these sections; writes no file without --out"
    )
    chosen.add_argument(
        "--again", nargs="+", choices=names, metavar="SECTION", help="these sections; the file keeps all others"
    )
    parser.add_argument("--requests", type=int, default=20_000, help="requests in the storm (default: %(default)s)")
    parser.add_argument(
        "--total", type=int, default=100_000, help="all requests, including those after it (default: %(default)s)"
    )
    parser.add_argument(
        "--rss-from", type=int, default=10_000, help="request from which memory is measured (default: %(default)s)"
    )
    parser.add_argument("--mixed", type=int, default=3000, help="requests of mixed sizes (default: %(default)s)")
    parser.add_argument(
        "--messages", type=int, default=10_000, help="fuzzed messages to each server (default: %(default)s)"
    )
    parser.add_argument("--flips", type=int, default=4000, help="requests while bits flip (default: %(default)s)")
    parser.add_argument("--lies", type=int, default=1000, help="requests for each way of lying (default: %(default)s)")
    parser.add_argument(
        "--outages", type=int, default=10, help="outages of an aggregator, of each kind (default: %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=60, help="kills of each write of state (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="concurrent clients (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"file to write (default: {RESULTS})")
    args = parser.parse_args()
    if not args.rss_from <= args.requests <= args.total:
        parser.error("--rss-from must not be more than --requests, and that not more than --total")
    out = args.out or (None if args.only else RESULTS)
    config = {key: value for key, value in vars(args).items() if key not in ("only", "again", "out")}
    config |= {"devices": NUM_DEVICES, "deadline_s": DEADLINE_S, "client_deadline_s": CLIENT_DEADLINE_S}
    before = Figures()
    if args.again and out:
        if not out.exists():
            parser.error(f"--again: {out}: no such file; run all sections first")
        before = json.loads(out.read_text())
        if different := [key for key, value in (("config", config), ("machine", machine())) if before[key] != value]:
            parser.error(f"--again: {out}: of another {' and '.join(different)}; run all sections")
    sections = tuple(section for section in SECTIONS if section.name in (args.only or args.again or section.name))
    inputs, _ = toy_data(200, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        bundle = toy_bundle(Path(folder) / "bundle", NUM_DEVICES, tested=True, width=WIDTH)
        with (
            storm.site(bundle, DEADLINE_S, args.seed) as site,
            Client(site.address, CLIENT_DEADLINE_S) as client,
        ):
            storm.load(client, inputs, args.concurrency, lambda number: number < WARM_UP)
            site.learn_latencies(client)
            figures = run(sections, Ground(bundle, inputs, site, client, Path(folder), args))
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    figures = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    provenance = {"config": config, "machine": machine(), "code_version": code_version(), "date": date}
    if args.again:
        measured = {name: {"code_version": code_version(), "date": date} for name in args.again}
        figures = merged(before, figures) | {"again": before.get("again", {}) | measured}
        provenance = {key: before[key] for key in provenance}
    if out:
        write_json(out, {**figures, **provenance})
        print(f"written to {out}")
    for name in figures["broken"]:
        print(f"BROKEN: {name}", file=sys.stderr)
    return 1 if figures["broken"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("soak: interrupted; no results were written", file=sys.stderr)
        sys.exit(130)
