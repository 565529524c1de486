"""Accuracy of CIFAR-100 when devices send wrong features: ``nonn-sim liars`` with a bundle of the repository.

    python -m benchmarks.liars FOLDER                     # writes benchmarks/results/cifar100-liars.json

``FOLDER`` contains test.parquet in the hub's layout (uoft-cs/cifar100). The bundles in ``examples`` have no recorded
features, so the students compute those of the first test images; the test for liars is that of the bundle.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from nonn_sim.liars import measure_honest, measure_lie
from nonn_sim.lies import LIES, Recording

from benchmarks.int8 import images
from nonn.bundle import Bundle, load_bundle, write_bundle
from nonn.bundle.manifest import FEATURES
from nonn.bundle.prediction import open_session, run_session
from nonn.files import write_json
from nonn.provenance import code_version, machine

BUNDLE = Path(__file__).parent.parent / "examples" / "bundles" / "cifar100"
RESULTS = Path(__file__).parent / "results"


def recorded(bundle: Bundle, folder: Path, count: int, path: Path) -> Bundle:
    """A copy of a bundle with the features that its students compute of the first test images."""
    inputs, labels = images(folder / "test.parquet", count)
    students = {i: bundle.student_path(i).read_bytes() for i in range(bundle.num_devices)}
    features = {
        f"device_{i}": bundle.manifest.students[i].code.roundtrip(run_session(open_session(data), inputs, 64))
        for i, data in students.items()
    }
    arrays: dict[str, Any] = {name: bundle.arrays(name) for name in bundle.manifest.files}
    return write_bundle(path, bundle.manifest, students, arrays | {FEATURES: {"labels": labels, **features}})


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="CIFAR-100 in the hub's layout")
    parser.add_argument(
        "--bundle", type=Path, default=BUNDLE, help="another bundle of CIFAR-100 (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=2000, help="test images (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=1000, help="for each set of liars (default: %(default)s)")
    parser.add_argument("--sets", type=int, default=2, help="sets of liars (default: %(default)s)")
    parser.add_argument("--honest", type=int, default=20_000, help="requests without a lie (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"file to write (default: {RESULTS}/NAME-liars.json)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        recording = Recording(recorded(load_bundle(args.bundle), args.folder, args.images, Path(scratch) / "bundle"))
        right = float(np.mean(recording.first == recording.labels))
        print(
            f"{args.images} images: {right:.2%} right with all devices ({time.monotonic() - start:.0f} s)", flush=True
        )
        honest, rows = measure_honest(recording, args.honest), []
        print(f"without a lie {honest}", flush=True)
        for liars in (1, 2):
            for lie in LIES:
                row = measure_lie(recording, lie, liars, requests=args.requests, sets=args.sets)
                rows.append(dataclasses.asdict(row))
                print(f"{row} ({time.monotonic() - start:.0f} s)", flush=True)
    name = recording.bundle.manifest.experiment
    config = {key: value for key, value in vars(args).items() if key not in ("folder", "bundle", "out")}
    provenance = {"config": config, "machine": machine(), "code_version": code_version()}
    out = args.out or RESULTS / f"{name}-liars.json"
    write_json(out, {"honest": dataclasses.asdict(honest), "lies": rows, **provenance})
    print(f"written to {out}")


if __name__ == "__main__":
    main()
