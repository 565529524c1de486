"""Detection delay and false alarms of the drift alarm, on the recorded features of a bundle.

::

    python benchmarks/drift.py runs/digits/bundle --json

Even rows of the recorded test features are the baseline, odd rows are drawn at random as the live stream, so that the
two share no sample. A false alarm takes years at the default setting, so the rate is measured at a setting that allows
many and compared with its bound; the default setting must then stay silent over the same stream.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.monitoring.drift import SECONDS_A_DAY, Baseline, DriftConfig, DriftWatch
from nonn.bundle import Bundle, load_bundle

Features = list[NDArray[np.float32]]
Fault = Callable[[Features, int, int, np.random.Generator], NDArray[np.float32]]
GIVE_UP = 5000  # samples

FAULTS: dict[str, Fault] = {
    "stuck": lambda live, node, row, rng: live[node][0],
    "zeros": lambda live, node, row, rng: np.zeros_like(live[node][0]),
    "wrong input": lambda live, node, row, rng: live[node][rng.integers(len(live[node]))],
    "noise, 2 sd": lambda live, node, row, rng: (
        live[node][row] + rng.normal(0, 2 * live[node].std(), live[node].shape[1]).astype(np.float32)
    ),
}


def split(bundle: Bundle) -> tuple[Baseline, Features]:
    """Baseline from even rows, features of odd rows."""
    features, _ = bundle.features
    logits = np.stack([bundle.head.logits({i: f[::2]}) for i, f in enumerate(features)]).astype(np.float32)
    return Baseline(logits), [f[1::2] for f in features]


def alarms(watch: DriftWatch, live: Features, num_samples: int, rng: np.random.Generator) -> int:
    """Findings while every node is as built."""
    rows = rng.integers(0, len(live[0]), num_samples)
    return sum(len(watch.observe({f"node-{i}": (i, f[row]) for i, f in enumerate(live)})) for row in rows)


def delay(watch: DriftWatch, live: Features, node: int, fault: Fault, rng: np.random.Generator) -> tuple[str, int]:
    """The node that is named first when one goes bad, and after how many samples."""
    for count, row in enumerate(rng.integers(0, len(live[0]), GIVE_UP), start=1):
        sample = {f"node-{i}": (i, f[row]) for i, f in enumerate(live)}
        sample[f"node-{node}"] = (node, fault(live, node, int(row), rng))
        for notice in watch.observe(sample):
            return notice.node or notice.kind, count
    return "", GIVE_UP


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    baseline, live = split(bundle)
    rng = np.random.default_rng(args.seed)
    # This setting accepts one false alarm in a thousand samples.
    loose = DriftConfig(false_alarms_per_day=DriftConfig.samples_per_s * SECONDS_A_DAY / 1000)
    rows = [
        {"fault": name, "node": node, "named": named, "samples": count}
        for name, fault in FAULTS.items()
        for node in range(bundle.num_devices)
        for named, count in [delay(DriftWatch(bundle, baseline), live, node, fault, rng)]
    ]
    result = {
        "experiment": bundle.manifest.experiment,
        "seed": args.seed,
        "samples": args.samples,
        "false_alarms": alarms(DriftWatch(bundle, baseline), live, args.samples, rng),
        "false_alarms_loose": alarms(DriftWatch(bundle, baseline, loose), live, args.samples, rng),
        "false_alarms_loose_promised": args.samples / 1000,
        "delays": rows,
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{args.samples} samples of a healthy cluster: {result['false_alarms']} alarms; at a threshold that accepts ")
    print(f"{args.samples / 1000:g}: {result['false_alarms_loose']}")
    for name in FAULTS:
        counts = [row["samples"] for row in rows if row["fault"] == name]
        wrong = [row for row in rows if row["fault"] == name and row["named"] != f"node-{row['node']}"]
        print(f"{name}: named after {min(counts)} to {max(counts)} samples, median {np.median(counts):g}; {wrong=}")


if __name__ == "__main__":
    main()
