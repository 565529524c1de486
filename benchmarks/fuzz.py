"""Malformed messages to a node and to the aggregator, and forged replies of a node."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime
import psutil

from benchmarks.section import Figures, Ground, Section
from nonn.client import Client
from nonn.cluster import LocalCluster
from tests.fuzzing import LyingNode, Server, fuzz_connections, fuzz_replies, fuzz_requests
from tests.serving import TIMEOUT_S, running_aggregator
from tests.toys import toy_bundle

__all__ = ["SECTIONS"]

MEMORY_GROWTH = 1.05
SETTLE_S = 5


def _memory(process: psutil.Process) -> int:
    """Bytes that only it uses, the least in some seconds: connections that have just ended are still being closed.

    Shared pages do not count: nodes unmap code that has run once, and a rare request maps some of it again.
    """
    found = list[int]()
    for _ in range(SETTLE_S):
        time.sleep(1)
        memory = process.memory_info()
        found.append(memory.rss - memory.shared)
    return min(found)


def _fuzz(ground: Ground) -> Figures:
    # Without a test for liars, which clips features: the oracle fuses what was sent.
    bundle, inputs, args = toy_bundle(ground.folder / "fuzz", ground.bundle.num_devices), ground.inputs, ground.args
    sessions = [onnxruntime.InferenceSession(str(bundle.student_path(i))) for i in range(bundle.num_devices)]

    def features(device: int, batch: Any) -> Any:
        return sessions[device].run(["features"], {"input": batch})[0]

    def fused(batch: Any) -> Any:
        return bundle.head.logits({i: features(i, batch) for i in range(bundle.num_devices)})

    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder, LocalCluster(bundle.path) as cluster:
        addresses = [state.address for state in cluster.states()]
        patient = ("--deadline", str(TIMEOUT_S))
        with (
            LyingNode(addresses[0]) as liar,
            running_aggregator(bundle.path, [liar.address, *addresses[1:]], Path(folder), *patient) as ready,
            Client(ready["address"], TIMEOUT_S) as client,
        ):
            outputs = ("logits", "confidence", "answered", "expected_accuracy")
            servers = {
                "node": (Server(addresses[1], "student-1", ("features",), bundle, lambda b: features(1, b)), 1),
                "aggregator": (Server(ready["address"], "nonn", outputs, bundle, fused), None),
            }
            for name, (server, node) in servers.items():
                process = psutil.Process(ready["pid"] if node is None else cluster.states()[node].pid)
                seen, memory = Counter[str](), list[int]()
                for half in range(2):  # the first one fills what has a limit: caches, logs, records of nodes
                    seen += fuzz_requests(server, inputs[:1], args.messages // 2, args.seed + half)
                    fuzz_connections(server.address, args.messages // 20, args.seed + half)
                    memory.append(_memory(process))
                figures[f"fuzz_{name}_status"] = dict(seen)
                figures[f"fuzz_{name}_memory_growth"] = memory[1] / memory[0]
                figures[f"fuzz_{name}_alive"] = process.is_running()
            figures["fuzz_replies"] = dict(fuzz_replies(client, liar, bundle, inputs, args.messages, args.seed))
    return figures


SECTIONS = (
    Section(
        "fuzz",
        _fuzz,
        {
            "fuzz: both servers live": lambda f: f["fuzz_node_alive"] and f["fuzz_aggregator_alive"],
            "fuzz: memory is flat": lambda f: (
                max(f["fuzz_node_memory_growth"], f["fuzz_aggregator_memory_growth"]) <= MEMORY_GROWTH
            ),
        },
    ),
)
