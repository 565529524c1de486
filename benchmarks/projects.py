"""The projects of ``devices/mcu`` for a Pico and an ESP32, built with SDKs that are there: they compile and link.

Called by ``python -m benchmarks.mcu --pico-sdk SDK --esp-idf IDF``. Both build ``devices/mcu/node.c`` with a student:

- ``pico``, for the Pico, with Debian's compiler. It is the whole program, so the linker checks flash and RAM;
- ``esp-idf``, for ESP-IDF's target ``linux``: configuration, components and sockets are those of ESP-IDF, the compiler
  is this machine's. So it has no sizes: only Espressif distributes compilers for an ESP32.

Needs on Debian: apt-get install cmake ninja-build g++ gcc-arm-none-eabi libstdc++-arm-none-eabi-newlib libbsd-dev; the
submodule lib/tinyusb of the Pico SDK, all submodules of ESP-IDF, and for it packages of PyPI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.emulated import HERE

__all__ = ["build_esp_idf", "build_pico"]

IDF_PACKAGES = ("esp-idf-kconfig==3.14.0", "pyparsing==3.3.3", "pyelftools==0.33")
UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20}


def build_pico(sdk: Path, student: Path, folder: Path) -> dict[str, Any]:
    """Builds the project for a Pico.

    Args:
        sdk: folder of the Pico SDK.
        student: folder with student.c and student.h.
        folder: for the build.

    Returns:
        ``project``, ``sdk`` with its version, ``flash_bytes`` and ``ram_bytes`` of the whole program.

    Raises:
        AssertionError: it does not compile, or does not fit.
    """
    options = [f"-DPICO_SDK_PATH={sdk}", "-DPICO_NO_PICOTOOL=1", "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--print-memory-usage"]
    output = _build("pico", folder, [*options, f"-DNONN_STUDENT={student}"])
    used = {
        region: int(size) * UNITS[unit] for region, size, unit in re.findall(r"(FLASH|RAM): +(\d+) ([KM]?B) ", output)
    }
    version = _version(sdk / "pico_sdk_version.cmake")
    return {
        "project": "devices/mcu/pico",
        "sdk": f"Pico SDK {version}",
        "flash_bytes": used["FLASH"],
        "ram_bytes": used["RAM"],
    }


def build_esp_idf(idf: Path, student: Path, folder: Path) -> dict[str, Any]:
    """Builds the project for an ESP32, for ESP-IDF's target linux.

    Args:
        idf: folder of ESP-IDF.
        student: folder with student.c and student.h.
        folder: for the build, and for a virtual environment with what ESP-IDF needs.

    Returns:
        ``project`` and ``sdk`` with its version.

    Raises:
        AssertionError: it does not compile.
    """
    python = folder / "esp-idf-python/bin/python"
    if not python.exists():
        venv.create(python.parent.parent, with_pip=True, symlinks=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *IDF_PACKAGES], check=True)
    environment = {"IDF_PATH": str(idf), "IDF_TARGET": "linux", "IDF_COMPONENT_MANAGER": "0"}
    environment["PATH"] = f"{python.parent}:{os.environ['PATH']}"
    options = [f"-DPYTHON={python}", "-DPYTHON_DEPS_CHECKED=1", "-DESP_PLATFORM=1", "-DIDF_TARGET=linux"]
    options += [f"-DSDKCONFIG={folder / 'esp-idf/sdkconfig'}", f"-DNONN_STUDENT={student}"]
    options.append(f"-DNONN_KEY={','.join(str(byte) for byte in range(32))}")
    _build("esp-idf", folder, options, environment)
    version = _version(idf / "tools/cmake/version.cmake")
    return {"project": "devices/mcu/esp-idf", "sdk": f"ESP-IDF {version}, target linux"}


def _build(project: str, folder: Path, options: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Configures and builds a project in an empty folder; returns what the build printed."""
    source, target, output = str(HERE / "devices/mcu" / project), str(folder / project), ""
    shutil.rmtree(target, ignore_errors=True)
    configure = ["cmake", "-G", "Ninja", "-S", source, "-B", target, *options]
    for command in (configure, ["cmake", "--build", target, "--target", "nonn.elf"]):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
        output = done.stdout + done.stderr
        assert not done.returncode, f"devices/mcu/{project}: {output.strip()[-2000:]}"
    return output


def _version(file: Path) -> str:
    """The version that a CMake file of an SDK sets."""
    return ".".join(re.findall(r"set\(\w+_VERSION_(?:MAJOR|MINOR|REVISION|PATCH) (\d+)\)", file.read_text()))
