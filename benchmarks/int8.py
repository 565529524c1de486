"""Cost of 8 bits in accuracy: the same students in float and in int8, over all subsets of devices.

    python benchmarks/int8.py                              # digits, as `nonn demo` trains them
    python benchmarks/int8.py --cifar FOLDER               # the shipped students of CIFAR-100 that are there in float

``FOLDER`` contains train.parquet and test.parquet in the hub's layout (uoft-cs/cifar100). The students of
examples/bundles/cifar100-small are quantised anew with 512 training images, and measured on all test images with the
bundle's head. Writes benchmarks/results/int8-<name>.json: configuration, machine, and for each number
of failed devices the mean and the worst accuracy in float and in int8 (weights and features), on the same students, and
the interval of the difference between the means for new test samples; for CIFAR-100 also the largest loss of a subset,
and how many subsets lose more than ``GOAL``.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, load_bundle
from nonn.bundle.traffic import traffic
from nonn.config import Experiment, ExportConfig, load_experiment
from nonn.documents import to_json
from nonn.enumeration import enumerate_evidence
from nonn.experiment.run import run
from nonn.export import run_onnx
from nonn.export.deploy import deploy
from nonn.files import write_json
from nonn.provenance import code_version, machine
from nonn.report import build_report

RESULTS = Path(__file__).parent / "results"
INT8 = ("export.weights=int8", "export.features=int8")
BUNDLE = Path(__file__).parent.parent / "examples" / "bundles" / "cifar100-small"
GOAL = 0.005  # most accuracy that a subset should lose


def main() -> None:
    """Quantises and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="CIFAR-100 in the hub's layout (default: digits)")
    parser.add_argument("--runs", type=Path, help="folder of runs to resume (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.cifar:
            name, figures = BUNDLE.name, measure_bundle(load_bundle(BUNDLE), args.cifar)
        else:
            experiment = load_experiment(None, INT8)
            name, figures = experiment.experiment.name, measure(experiment, args.runs or Path(scratch))
    write_json(RESULTS / f"int8-{name}.json", figures)
    for row in figures["accuracy_by_failures"]:
        low, high = (100 * end for end in row["drop_interval"])
        print(
            f"{row['failed']} failed: {100 * row['float32']:.2f} % in float, {100 * row['int8']:.2f} % in int8; lost, "
            f"95 %: {low:.2f} to {high:.2f} points"
        )
    if "largest_drop" in figures:
        print(f"largest loss of a subset: {100 * figures['largest_drop']:.2f} points")
        print(f"{figures['subsets_over_goal']} subsets lose more than {100 * GOAL:g} points")
    print(f"size {figures['size_ratio']:.3f} of float; {figures['bytes_per_answer']} bytes per answer")


def measure(experiment: Experiment, runs: Path) -> dict[str, Any]:
    """Runs an int8 experiment and compares its bundle with the same students in float."""
    bundle = run(experiment, runs=runs).bundle
    precision, floats = build_report(bundle).precision, bundle.manifest.provenance["float32"]
    assert precision is not None, "the experiment builds an int8 bundle"
    rows = zip(bundle.table.by_failures(), floats["accuracy_by_failures"], precision.drop_by_failures, strict=True)
    return {
        "config": dataclasses.asdict(experiment),
        "machine": machine(),
        "code_version": code_version(),
        "test_samples": bundle.table.samples,
        "size_ratio": precision.size_ratio,
        **to_json(traffic(bundle.manifest)),
        "drop_alone": list(precision.drop_alone),
        "accuracy_by_failures": [
            {
                "failed": now.failed,
                "subsets": now.subsets,
                "float32": then["mean"],
                "int8": now.mean,
                "worst_float32": then["worst"],
                "worst_int8": now.worst,
                "drop_interval": drop.interval,
            }
            for now, then, drop in rows
        ],
    }


def measure_bundle(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Quantises the float students of a bundle and compares both on test images."""
    calibration, _ = images(folder / "train.parquet", 512)
    inputs, labels = images(folder / "test.parquet")
    sizes = [0, 0]
    features: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    for i in range(bundle.num_devices):
        data = (bundle.path / "students" / f"student-{i}.onnx").read_bytes()
        small = deploy(ExportConfig(weights="int8", features="int8"), i, data, calibration)
        features[0].append(run_onnx(data, inputs))
        features[1].append(small.features(inputs))
        sizes[0] += len(data)
        sizes[1] += len(small.data)
    exact, small = (enumerate_evidence(bundle.head, found, labels) for found in features)
    drops = exact.less(small, exact.level_weights())
    lost = (exact.table.accuracy - small.table.accuracy)[1:]
    return {
        "bundle": bundle.hash,
        "machine": machine(),
        "code_version": code_version(),
        "test_samples": len(labels),
        "size_ratio": sizes[1] / sizes[0],
        **to_json(traffic(bundle.manifest)),
        "largest_drop": float(lost.max()),
        "subsets_over_goal": int((lost > GOAL).sum()),
        "accuracy_by_failures": [
            {
                "failed": now.failed,
                "subsets": now.subsets,
                "float32": then.mean,
                "int8": now.mean,
                "worst_float32": then.worst,
                "worst_int8": now.worst,
                "drop_interval": list(drop),
            }
            for then, now, drop in zip(exact.table.by_failures(), small.table.by_failures(), drops, strict=True)
        ],
    }


def images(file: Path, count: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first images [n, C, H, W] of a file, or all, and their fine labels."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(file).slice(0, count)
    decoded = [np.asarray(Image.open(io.BytesIO(value["bytes"]))) for value in table.column(0).to_pylist()]
    return np.stack(decoded).transpose(0, 3, 1, 2), np.array(table.column("fine_label").to_pylist())


if __name__ == "__main__":
    main()
