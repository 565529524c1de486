"""CMSIS-NN, Arm's kernels for Cortex-M, as an option of the C export: installed by the user, never part of nonn.

    git clone https://github.com/ARM-software/CMSIS-NN
    nonn export BUNDLE --target c --cmsis-nn CMSIS-NN --cc "arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb"

student.c then calls ``arm_convolve_wrapper_s8`` for every convolution that is not depthwise. A program compiles it with
``sources``, each after ``devices/mcu/requantize.h`` (``gcc -include``): with that they round half to even as ONNX
Runtime does, and features agree in every bit; without it a value in the middle of two steps may differ by one.

Limits: GCC or Clang; processors without Helium (Cortex-M55 and later have other kernels, which round in assembly).
"""

from __future__ import annotations

from pathlib import Path

from nonn.errors import ConfigError

__all__ = ["check_cmsis_nn", "sources"]

LICENCE = "Apache License"


def check_cmsis_nn(folder: Path) -> str:
    """Checks a checkout of CMSIS-NN, and returns the option of the compiler for its headers.

    Raises:
        ConfigError: it is not CMSIS-NN, or its licence is not the Apache License 2.0.
    """
    header = folder / "Include" / "arm_nnfunctions.h"
    if not header.is_file() or not sources(folder):
        raise ConfigError(
            f"--cmsis-nn {folder}: no Include/arm_nnfunctions.h or no sources there; get it with: git clone "
            "https://github.com/ARM-software/CMSIS-NN"
        )
    licence = folder / "LICENSE"
    text = licence.read_text(errors="replace")[:1000] if licence.is_file() else ""
    if LICENCE not in text or "Version 2.0" not in text:
        raise ConfigError(f"--cmsis-nn {folder}: its LICENSE is not the Apache License 2.0; check where it comes from")
    return f"-I{header.parent}"


def sources(folder: Path) -> list[Path]:
    """The files of CMSIS-NN that a student needs; a linker that drops unused sections keeps little of them."""
    kernels = [*folder.glob("Source/ConvolutionFunctions/*_s8*.c"), *folder.glob("Source/NNSupportFunctions/*.c")]
    return sorted(file for file in kernels if not file.stem.endswith(("_f16", "_f32")))
