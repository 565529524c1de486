"""Cost of 8 bits in accuracy: the same students in float and in int8, over all subsets of devices.

    python benchmarks/int8.py                              # digits, as `nonn demo` trains them
    python benchmarks/int8.py --cifar FOLDER               # ten classes of CIFAR-100, briefly trained

``FOLDER`` contains train.parquet and test.parquet in the hub's layout (uoft-cs/cifar100). The images of the first
ten fine classes are used, 5,000 to train and 1,000 to test, so that eight students train in minutes on a CPU; they are
far from converged. Writes benchmarks/results/int8-<name>.json: configuration, machine, and for each number of failed
devices the mean and the worst accuracy in float and in int8 (weights and features), paired on the same students.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from nonn.bundle.traffic import traffic
from nonn.config import Experiment, load_experiment
from nonn.documents import to_json
from nonn.experiment.run import run
from nonn.files import write_json
from nonn.provenance import code_version, machine
from nonn.report import build_report

RESULTS = Path(__file__).parent / "results"
INT8 = ("export.weights=int8", "export.features=int8")
CLASSES = 10


def main() -> None:
    """Trains, quantises and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="CIFAR-100 in the hub's layout (default: digits)")
    parser.add_argument("--runs", type=Path, help="folder of runs to resume (default: a temporary one)")
    parser.add_argument(
        "--epochs", type=int, default=6, help="CIFAR: epochs of teacher and students (default: %(default)s)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = args.runs or Path(scratch)
        if args.cifar:
            experiment = _cifar(args.cifar, runs / "cifar-10-of-100", args.epochs)
        else:
            experiment = load_experiment(None, INT8)
        figures = measure(experiment, runs)
    name = experiment.experiment.name
    write_json(RESULTS / f"int8-{name}.json", figures)
    for row in figures["accuracy_by_failures"]:
        print(f"{row['failed']} failed: {100 * row['float32']:.2f} % in float, {100 * row['int8']:.2f} % in int8")
    print(f"size {figures['size_ratio']:.3f} of float; {figures['bytes_per_answer']} bytes per answer")


def measure(experiment: Experiment, runs: Path) -> dict[str, Any]:
    """Runs an int8 experiment and compares its bundle with the same students in float."""
    bundle = run(experiment, runs=runs).bundle
    precision, floats = build_report(bundle).precision, bundle.manifest.provenance["float32"]
    assert precision is not None, "the experiment builds an int8 bundle"
    rows = zip(bundle.table.by_failures(), floats["accuracy_by_failures"], strict=True)
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
            }
            for now, then in rows
        ],
    }


def _cifar(folder: Path, target: Path, epochs: int) -> Experiment:
    """An experiment on the first ten classes, whose files are written to ``target``."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        pq.write_table(table.filter(pc.less(table["fine_label"], CLASSES)), target / f"{split}.parquet")
    settings = [
        "experiment.name=cifar",
        "data.reader=parquet",
        f"data.path={target}",
        "data.labels=fine_label",
        "data.crop=4",
        "data.flip=true",
        "data.noise=0.0",
        "teacher.model=wrn-16-1",
        "student.model=wrn-10-1",
        f"teacher.epochs={epochs}",
        f"distill.epochs={epochs}",
        "fusion.passes=1",
    ]
    return load_experiment(None, [*settings, *INT8])


if __name__ == "__main__":
    main()
