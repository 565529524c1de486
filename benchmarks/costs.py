"""What a student costs its device: time, memory and size of every shipped student in every runtime.

    python -m benchmarks.costs

For ONNX Runtime and compiled C, in float and in 8 bits, on one thread, each in a separate process
(``nonn-device check``): time of an answer, resident memory, and size of the file; in C also flash and RAM of the
student alone. Parameters, multiply-accumulates and activations come from the student. Weights are random, since none of
the figures depends on them, and the students in 8 bits are those of today's quantiser.

``estimates`` are of devices that were not measured here, and say where they come from: multiply-accumulates divided by
the rate that XNNPACK's authors measured on a board of that kind, or counted instructions (``benchmarks.mcu``) at one
for each cycle. Expect a factor of two. Measure with ``nonn-device check`` on the device. Energy of an answer is that
time multiplied by a published power of such a board above rest, without the radio; measure it with ``nonn doctor
--device --energy``. ``--estimates`` makes only the estimates again, for the rows that are there.

Written to benchmarks/results/costs.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonn_device.self_test import self_test

from benchmarks.device import device_bundle
from nonn.bundle import Bundle
from nonn.export.memory import activation_bytes
from nonn.files import write_json
from nonn.provenance import code_version, machine

__all__ = ["BOARDS", "STUDENTS", "measure"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Shipped:
    """A student of an example.

    Attributes:
        example: that ships it.
        model: as ``student.model`` has it.
        shape: of one sample [C, H, W] or [C, T].
        width: features that it sends.
        sends: ``bridge`` or ``penultimate``.
    """

    example: str
    model: str
    shape: tuple[int, ...]
    width: int
    sends: str = "bridge"


STUDENTS = (
    Shipped("digits", "wrn-10-1", (1, 8, 8), 16),
    Shipped("wearables", "strided-4-1", (9, 125), 64, sends="penultimate"),
    Shipped("cifar100-small", "wrn-10-1", (3, 32, 32), 128),
    Shipped("cifar100", "wrn-16-1", (3, 32, 32), 256),
    Shipped("cifar100-large", "wrn-16-2", (3, 32, 32), 256),
)


@dataclass(frozen=True)
class Board:
    """A device that is estimated.

    Attributes:
        name: of the board.
        macs_per_s: in float, on one core; 0 if instructions are counted.
        hz: clock; 0 if ``macs_per_s`` is known.
        counted: processor of mcu.json whose instructions stand for it.
        source: of the number.
    """

    name: str
    source: str
    macs_per_s: float = 0.0
    hz: float = 0.0
    counted: str = ""
    watts: float = 0.0
    power: str = ""


# XNNPACK, README, "Raspberry Pi": MobileNet v1 1.0 (569 million multiply-accumulates) in float on four cores.
_PER_CORE = 569e6 / 4
BOARDS = (
    Board(
        "Pi Zero 2 W",
        "XNNPACK on a Pi 3+ (Cortex-A53), 114 ms, by clock 1.0 / 1.4 GHz",
        _PER_CORE / 0.114 / 1.4,
        watts=round((5.1 - 1.9) / 4 / 1.4, 3),
        power="pidramble.com, Pi 3 B+: 1.9 W at rest, 5.1 W with four busy cores, by clock 1.0 / 1.4 GHz",
    ),
    Board(
        "Pi 4",
        "XNNPACK on a Pi 4 (Cortex-A72, 64 bits), 77 ms",
        _PER_CORE / 0.077,
        watts=round((6.4 - 2.7) / 4, 3),
        power="pidramble.com: 2.7 W at rest, 6.4 W with four busy cores",
    ),
    Board("Pi 5", "Pi 4 by clock 2.4 / 1.5 GHz and two multiply-add pipes for one", 2 * 1.6 * _PER_CORE / 0.077),
    Board("Cortex-M4F at 168 MHz", "counted instructions, one a cycle", hz=168e6, counted="Cortex-M4F"),
    Board(
        "ESP32-S3 at 240 MHz",
        "instructions of RV32IMAC in its place, one a cycle",
        hz=240e6,
        counted="RV32IMAC",
        watts=round(3.3 * (0.0323 - 0.00078), 3),
        power="WUSN of ComNets Bremen, ESP32-S3-DevKitC at 3.3 V: 32.3 mA awake, 0.78 mA in light sleep",
    ),
)


def main() -> None:
    """Measures every student; writes the file only after all of them, since it describes one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimates", action="store_true", help="only the estimates, of the rows that are there")
    args = parser.parse_args()
    counted = {
        (row["student"], row["processor"]): row for row in json.loads((RESULTS / "mcu.json").read_text())["rows"]
    }
    if args.estimates:
        found = json.loads((RESULTS / "costs.json").read_text())
    else:
        rows = []
        for shipped in STUDENTS:
            for row in measure(shipped):
                rows.append(row)
                print(json.dumps(row), flush=True)
        found = {"command": "python -m benchmarks.costs", "rows": rows}
        found |= {"boards": {}, "watts": {}, "machine": machine(), "code_version": code_version()}
    for row in found["rows"]:
        row["estimates_ms"] = dict(estimates(row, counted))
    found["boards"] = {board.name: board.source for board in BOARDS}
    found["watts"] = {board.name: {"watts": board.watts, "source": board.power} for board in BOARDS if board.watts}
    write_json(RESULTS / "costs.json", found)


def measure(shipped: Shipped, run: Callable[..., dict[str, Any]] = self_test) -> Iterator[dict[str, Any]]:
    """The rows of one student: float and 8 bits, in ONNX Runtime and in C.

    Args:
        shipped: the student.
        run: measures time and memory of (bundle, student, runtime).
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = device_bundle(Path(folder), shipped.model, shipped.shape, shipped.width, shipped.sends)
        command = [sys.executable, "-m", "nonn", "export", str(bundle.path), "--target", "c", "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        compiled = json.loads(done.stdout)["students"]
        for device, student in enumerate(bundle.manifest.students):
            known = {
                "example": shipped.example,
                "model": shipped.model,
                "weights": student.weights,
                "params": student.params,
                "macs": student.macs,
                "activation_bytes": activation_bytes(bundle.student_path(device).read_bytes()),
            }
            for runtime in ("onnx", "c"):
                found = run(bundle.path, device, runtime)
                row = known | {"runtime": runtime, "answer_ms": found["run_ms"], "rss_mb": found["rss_mb"]}
                if runtime == "onnx":
                    yield row | {"file_bytes": bundle.student_path(device).stat().st_size}
                else:
                    yield row | {
                        "file_bytes": _library_bytes(bundle, device),
                        "flash_bytes": compiled[device]["flash_bytes"],
                        "ram_bytes": compiled[device]["ram_bytes"],
                    }


def estimates(row: dict[str, Any], counted: dict[tuple[str, str], dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Milliseconds of an answer on each board that this row says something about."""
    for board in BOARDS:
        if board.macs_per_s and (row["runtime"], row["weights"]) == ("onnx", "float32"):
            yield board.name, round(1e3 * row["macs"] / board.macs_per_s, 2)
        kind = f"{row['example']}, {'int8' if row['weights'] == 'int8' else 'float'}"
        if board.hz and row["runtime"] == "c" and (kind, board.counted) in counted:
            yield board.name, round(1e3 * counted[kind, board.counted]["instructions"] / board.hz, 1)


def _library_bytes(bundle: Bundle, device: int) -> int:
    from nonn_device.compiled import library_path

    return library_path(bundle.path, device).stat().st_size


if __name__ == "__main__":
    main()
