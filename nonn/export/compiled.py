"""One student of a bundle as C: translated, compiled, and compared with ONNX Runtime as a node runs both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nonn.bundle import Bundle
from nonn.errors import BundleError
from nonn.export.build import build_library, measure_footprint, write_source
from nonn.export.c import generate_c
from nonn.export.cmsis_nn import check_cmsis_nn

__all__ = ["TOLERANCE", "export_student"]

# Mean absolute difference relative to the mean feature. Floats differ by the order of sums; in 8 bits a value may round
# to a neighbouring step.
TOLERANCE = {"float32": 1e-5, "int8": 5e-3}
_SAMPLES = 16


def export_student(
    bundle: Bundle,
    device: int,
    folder: Path,
    compiler: Sequence[str],
    target: str,
    *,
    library: bool = True,
    cmsis_nn: Path | None = None,
) -> dict[str, Any]:
    """Translates and compiles a student.

    Args:
        bundle: of the student.
        device: number of the student.
        folder: for student.c, student.h and student.so.
        compiler: command of the C compiler.
        target: of the compiler.
        library: build student.so, and run it if it is for this machine.
        cmsis_nn: folder of CMSIS-NN, which the student calls; its kernels are not in the figures, and no library is
            built.

    Returns:
        ``student``, ``weights``, ``folder``, the fields of Footprint, ``arena_bytes``, ``gap`` and ``run_ms``; the last
        two are None without ``library``, or if it is for another machine.

    Raises:
        BundleError: the student cannot be translated, or its features differ from ONNX Runtime's.
        ConfigError: the compiler failed.
        MissingExtraError: emx-onnx-cgen is not installed.
    """
    student = bundle.manifest.students[device]
    if cmsis_nn is not None:
        compiler, library = [*compiler, check_cmsis_nn(cmsis_nn)], False
    title = f"{bundle.manifest.experiment}, student {device}"
    made = generate_c(bundle.student_path(device).read_bytes(), title, student.code, cmsis_nn=cmsis_nn is not None)
    source = write_source(made, folder)
    row: dict[str, Any] = {
        "student": device,
        "weights": student.weights,
        "folder": str(folder),
        "arena_bytes": made.arena_bytes,
        **asdict(measure_footprint(compiler, target, source, made.buffer_bytes)),
        "gap": None,
        "run_ms": None,
    }
    if library and _is_native(built := build_library(compiler, source)):
        row |= _compare(bundle, device, built)
        if not row["gap"] <= TOLERANCE[student.weights]:
            raise BundleError(
                f"{built}: differs from ONNX Runtime by {row['gap']:.2g} of its features (allowed "
                f"{TOLERANCE[student.weights]:g}); do not use it, and compile without options such as -ffast-math"
            )
    return row


def _is_native(library: Path) -> bool:
    """Whether a shared object is for this machine."""
    from nonn_device.compiled import machine_of

    with library.open("rb") as mine, Path("/proc/self/exe").open("rb") as own:
        return machine_of(mine.read(20)) == machine_of(own.read(20))


def _compare(bundle: Bundle, device: int, library: Path) -> dict[str, Any]:
    """Runs the student like a node, in C and in ONNX Runtime; C first in a separate process."""
    from nonn_device.runtime import open_runtime
    from nonn_device.self_test import samples_like, self_test

    measured = self_test(bundle.path, device, "c", library)
    inputs = samples_like(bundle.input_of(device), _SAMPLES)
    expected = open_runtime("onnx", bundle, device).run(inputs)
    got = open_runtime("c", bundle, device, library=library).run(inputs)
    gap = float(np.abs(got - expected).mean() / max(float(np.abs(expected).mean()), 1e-12))
    return {"gap": gap, "run_ms": measured["run_ms"]}
