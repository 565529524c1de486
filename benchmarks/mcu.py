"""``make mcu``: students on emulated microcontrollers without an operating system.

The student of every example (``benchmarks.costs``) is translated to C, linked with ``devices/mcu/measure.c`` for a
Cortex-M3 (no floating point unit), a Cortex-M4F and a 32-bit RISC-V with 256 kB of RAM, and run in QEMU. The linker
refuses a program that needs more RAM. Weights are random, since neither size nor instructions depend on them. Written
to benchmarks/results/mcu.json, for each student and processor:

- ``flash_bytes`` and ``ram_bytes`` of the whole program: the student, its buffers, the C library, 4 kB of stack;
- ``instructions`` of one answer, which is no time: a real core takes one to several cycles for one;
- ``gap``: the largest difference of a feature from ONNX Runtime's on this machine, over the largest feature.

It ends with an error if a gap is above ``TOLERANCE``, or if a board behind a line (``devices/mcu/node.c``) gives other
features. A processor whose compiler or emulator is missing is skipped, and the packages that it needs are printed.

What is no part of nonn is measured if it is there: ``--cmsis-nn DIR`` is a checkout of CMSIS-NN, with whose kernels
students in 8 bits are measured on the Cortex-M too (``nonn.export.cmsis_nn``); ``--pico-sdk DIR`` and ``--esp-idf DIR``
are SDKs, with which the projects of devices/mcu are built (``benchmarks.projects``).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nonn_device.board import BoardRuntime
from numpy.typing import NDArray

from benchmarks.costs import STUDENTS
from benchmarks.device import device_bundle
from benchmarks.emulated import PACKAGES, PROCESSORS, RAM_KB, STACK_BYTES, EmulatedBoard, Processor, free_port, link
from benchmarks.features import random_samples
from benchmarks.projects import build_esp_idf, build_pico
from nonn.bundle import InputSpec, StudentEntry
from nonn.bundle.features import FeatureCode
from nonn.errors import UnreachableError
from nonn.export import run_onnx
from nonn.export.build import write_source
from nonn.export.c import generate_c
from nonn.files import write_json
from nonn.provenance import code_version, machine

HERE = Path(__file__).resolve().parent.parent
RESULT = HERE / "benchmarks" / "results" / "mcu.json"
TOLERANCE = 1e-5
TIMEOUT_S = 600.0
FLOAT_MACS = 20_000_000  # a larger student in float takes minutes without a floating point unit, and more than the RAM


def main() -> None:
    """Measures every student on every processor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimise", default="-O2", help="option of the compilers (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=HERE / "build" / "mcu", help="of builds (default: %(default)s)")
    parser.add_argument("--cmsis-nn", type=Path, metavar="DIR", help="measure students in 8 bits with its kernels too")
    parser.add_argument("--pico-sdk", type=Path, metavar="DIR", help="build the project for a Pico with it")
    parser.add_argument("--esp-idf", type=Path, metavar="DIR", help="build the project for an ESP32 with it")
    args = parser.parse_args()
    available = [processor for processor in PROCESSORS if _is_available(processor)]
    if not available:
        return
    rows: list[dict[str, Any]] = []
    projects: list[dict[str, Any]] = []
    for student, data, samples in students():
        if student == "digits, int8":
            check_board(available[-1], data, samples)
            check_board(available[0], data, samples)
            projects = list(build_projects(args, data))
        wanted = [(processor, None) for processor in available]
        if args.cmsis_nn and student.endswith("int8"):
            wanted += [(processor, args.cmsis_nn) for processor in available if processor.name.startswith("Cortex")]
        for processor, kernels in wanted:
            row = measure(processor, student, data, samples[:1], args.optimise, kernels)
            row = {"student": f"{student}, CMSIS-NN" if kernels else student, **row}
            rows.append(row)
            print(
                f"{row['student']:36} {processor.name:10} {row['flash_bytes']:9,} B flash {row['ram_bytes']:8,} B RAM "
                f"{row['instructions'] / 1e6:9.1f} M instructions, gap {row['gap']:.1e}",
                flush=True,
            )
            assert row["gap"] <= TOLERANCE, (
                f"{student} on {processor.name} differs from ONNX Runtime by {row['gap']:.2g}"
            )
    given = [f" --{name} DIR" for name in ("cmsis-nn", "pico-sdk", "esp-idf") if getattr(args, name.replace("-", "_"))]
    write_json(
        RESULT,
        {
            "command": f"python -m benchmarks.mcu --optimise={args.optimise}{''.join(given)}",
            "ram_limit_bytes": 1024 * RAM_KB,
            "stack_bytes": STACK_BYTES,
            "processors": [asdict(processor) for processor in available],
            "rows": rows,
            "projects": projects,
            "machine": machine(),
            "code_version": code_version(),
        },
    )
    print(f"written to {RESULT}")


def _is_available(processor: Processor) -> bool:
    if processor.missing:
        print(f"skipped: {processor.name}, no {', '.join(processor.missing)}; {PACKAGES}")
    return not processor.missing


def students() -> Iterator[tuple[str, bytes, NDArray[np.float32]]]:
    """The student of every example in float, unless it is large, and in 8 bits, with samples [2, …]."""
    for shipped in STUDENTS:
        with tempfile.TemporaryDirectory() as folder:
            bundle = device_bundle(Path(folder), shipped.model, shipped.shape, shipped.width, shipped.sends)
            for student in bundle.manifest.students:
                kind = "int8" if student.weights == "int8" else "float"
                if kind == "int8" or student.macs <= FLOAT_MACS:
                    data = bundle.student_path(student.device).read_bytes()
                    yield f"{shipped.example}, {kind}", data, random_samples(shipped.shape, 2)


def build_projects(args: argparse.Namespace, data: bytes) -> Iterator[dict[str, Any]]:
    """Builds the projects whose SDK is there with a student."""
    folder = args.folder.resolve()
    source = write_source(generate_c(data, "digits"), folder / "student")
    for build, sdk in ((build_pico, args.pico_sdk), (build_esp_idf, args.esp_idf)):
        if sdk is not None:
            yield (row := build(sdk.resolve(), source.parent, folder))
            print(row, flush=True)


def check_board(processor: Processor, data: bytes, samples: NDArray[np.float32]) -> None:
    """Runs ``devices/mcu/node.c`` behind a TCP port; the board is reset between two samples.

    Raises:
        AssertionError: the features are not those of ONNX Runtime, sent as bytes.
    """
    shape, computed = samples.shape[1:], run_onnx(data, samples)
    code = FeatureCode.fit("int8", computed)
    expected = code.roundtrip(computed)
    entry = StudentEntry(
        0, 0, "", hashlib.sha256(data).hexdigest(), 0, 0, 0, expected.shape[1], "int8", scale=code.scale, low=code.low
    )
    with tempfile.TemporaryDirectory() as temporary:
        program = link(processor, "node.c", write_source(generate_c(data, "board", code), Path(temporary)))
        place = f"tcp:127.0.0.1:{(port := free_port())}"
        spec = InputSpec(shape, "uint8", (0.0,) * shape[0], (1.0,) * shape[0])
        runtime, found = None, []
        for sample in samples[:2]:
            with EmulatedBoard(processor, program, port):
                deadline = time.monotonic() + TIMEOUT_S
                while runtime is None:
                    try:
                        runtime = BoardRuntime(place, entry, spec)
                    except UnreachableError:
                        assert time.monotonic() < deadline, "the emulated board does not start"
                        time.sleep(0.2)
                found.append(_answer(runtime, sample[None], deadline))
        assert runtime is not None
        runtime.close()
    assert (np.concatenate(found) == expected[:2]).all(), f"{processor.name}: a board behind a line differs"
    print(f"a board behind a line, {processor.name}: 2 answers, with a reset between them", flush=True)


def _answer(runtime: BoardRuntime, sample: NDArray[np.float32], deadline: float) -> NDArray[np.float32]:
    """Asks again while the board starts."""
    while True:
        try:
            return runtime.run(sample)
        except UnreachableError:
            assert time.monotonic() < deadline, "the emulated board does not answer"
            time.sleep(0.2)


def measure(
    processor: Processor,
    name: str,
    data: bytes,
    samples: NDArray[np.float32],
    optimise: str,
    cmsis_nn: Path | None = None,
) -> dict[str, Any]:
    """Links and runs one student.

    Raises:
        AssertionError: it does not fit, or does not run.
    """
    expected = run_onnx(data, samples)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = write_source(generate_c(data, name, cmsis_nn=cmsis_nn is not None), folder)
        rows = ",\n".join("{" + ",".join(map(str, row.reshape(-1).astype(np.uint8))) + "}" for row in samples)
        declared = f"static const unsigned char samples[{len(samples)}][{samples[0].size}]"
        (folder / "samples.h").write_text(f"#define SAMPLES {len(samples)}\n{declared} = {{\n{rows}}};\n")
        program = link(processor, "measure.c", source, optimise, cmsis_nn)
        size = subprocess.run(["size", str(program)], check=True, capture_output=True, text=True).stdout.split("\n")[1]
        text, initial, zeros = (int(word) for word in size.split()[:3])
        emulate = [
            *processor.emulator.split(),
            "-display",
            "none",
            "-monitor",
            "none",
            "-serial",
            "none",
            "-icount",
            "shift=0",
        ]
        emulate += ["-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
        ran = subprocess.run(emulate, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    lines = [line.split() for line in (ran.stdout + ran.stderr).splitlines()]
    bits = [int(line[1], 16) for line in lines if line[:1] == ["feature"]]
    assert len(bits) == expected.size, f"{name} on {processor.name}: {(ran.stdout + ran.stderr)[-500:]}"
    found = np.array(bits, np.uint32).view(np.float32).reshape(expected.shape)
    return {
        "processor": processor.name,
        "flash_bytes": text + initial,
        "ram_bytes": initial + zeros,
        "instructions": max(int(line[1]) for line in lines if line[:1] == ["instructions"]),
        "gap": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }


if __name__ == "__main__":
    main()
