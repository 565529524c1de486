"""Many devices end to end: tiny students trained on digits, exported, served by a process each, and killed.

    python -m benchmarks.many                      # 64 devices
    python -m benchmarks.many --devices 24         # fewer processes

One process serves one student, so that 64 devices are 64 processes; `node_rss_mb` of `make bench` is the memory of one.
Prints, and writes to benchmarks/results/many.json, for none to three quarters of the devices killed: accuracy of the
whole test split over the network, that of the same students fused offline, and the accuracy that the answers state,
from the table of a sample of the subsets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.config import Experiment, load_experiment
from nonn.experiment.run import Result, execute
from nonn.experiment.workspace import Workspace
from nonn.files import write_json
from nonn.provenance import code_version, machine
from nonn.reliability.subsets import mask_of

RESULT = Path(__file__).parent / "results" / "many.json"
START_TIMEOUT_S, SETTLE_S = 600.0, 60.0
DEADLINE_S = 30.0  # of an answer: 64 processes share the cores of one machine
SETTINGS = (
    "experiment.name=many",
    "teacher.model=wrn-10-1",
    "teacher.epochs=8",
    "partition.parts=16",
    "student.model=strided-2-1",
    "distill.epochs=2",
    "fusion.passes=1",
)


def main() -> None:
    """Trains, serves, kills and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=64, metavar="N", help="devices, 17 to 256 (default: 64)")
    parser.add_argument("--runs", type=Path, help="folder of runs to resume (default: a temporary one)")
    args = parser.parse_args()
    experiment = load_experiment(None, (*SETTINGS, f"devices.count={args.devices}"))
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.monotonic()
        space = Workspace(experiment, args.runs or Path(scratch))
        result = execute(space)
        trained_s = time.monotonic() - begin
        figures = measure(experiment, result, space.data.test.inputs)
    write_json(RESULT, figures | {"train_s": trained_s, "machine": machine(), "code_version": code_version()})
    for row in figures["rows"]:
        print(
            f"{row['failed']:3} killed: {row['correct_live']} of {figures['samples']} right over the network, "
            f"{row['correct_offline']} offline; stated {100 * row['stated']:.2f} %"
            f"{' (estimated)' if row['estimated'] else ''}, {row['answer_ms']:.0f} ms for all samples in one request"
        )
    print(f"trained in {trained_s:.0f} s, {args.devices} processes up after {figures['start_s']:.1f} s")


def measure(experiment: Experiment, result: Result, inputs: NDArray[Any]) -> dict[str, Any]:
    """Kills more and more nodes of a live cluster, and compares its answers with the offline fusion."""
    bundle, num_devices = result.bundle, experiment.devices.count
    features, labels = bundle.features
    # Not seed 0, whose first order is one of the table's.
    order = np.random.default_rng(1).permutation(num_devices).tolist()
    rows, begin = [], time.monotonic()
    with (
        LocalCluster(bundle, deadline_s=DEADLINE_S, start_timeout_s=START_TIMEOUT_S) as cluster,
        Client(cluster.address, 2 * DEADLINE_S) as client,
    ):
        start_s = time.monotonic() - begin
        for failed in (0, 1, 3, num_devices // 4, num_devices // 2, 3 * num_devices // 4):
            for node in order[len(rows) and rows[-1]["failed"] : failed]:
                cluster.kill(node)
            survivors = sorted(order[failed:])
            until = time.monotonic() + SETTLE_S
            while client.infer(inputs[:1]).mask != mask_of(survivors) and time.monotonic() < until:
                pass
            asked = time.monotonic()
            answer = client.infer(inputs)
            answer_ms = 1000 * (time.monotonic() - asked)
            assert answer.mask == mask_of(survivors), f"{failed} killed: another subset answered"
            offline = bundle.head.logits({i: features[i] for i in survivors}).astype(np.float32).argmax(axis=1)
            stated = bundle.accuracies.stated(answer.mask)
            assert answer.expected_accuracy == stated.accuracy, "the answer states another accuracy than the table"
            rows.append(
                {
                    "failed": failed,
                    "answer_ms": answer_ms,
                    "different_answers": int((answer.labels != offline).sum()),
                    "correct_live": int((answer.labels == labels).sum()),
                    "correct_offline": int((offline == labels).sum()),
                    "stated": stated.accuracy,
                    "stated_interval": list(stated.interval),
                    "estimated": stated.estimated,
                }
            )
    return {
        "devices": num_devices,
        "samples": len(labels),
        "settings": list(SETTINGS),
        "start_s": start_s,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
