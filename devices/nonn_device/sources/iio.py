"""``iio:DEVICE``: accelerometers, gyroscopes and magnetometers of Linux's Industrial I/O, read through sysfs.

DEVICE is a number, a name, or several of them with commas: a Sense HAT's LSM9DS1 is more than one. A channel of the
bundle is found by its name: ``acc_x``, ``accel_x`` → ``in_accel_x_raw``, ``gyr_y`` → ``in_anglvel_y_raw``, ``mag_z`` →
``in_magn_z_raw``. The kernel gives m/s², rad/s and gauss after ``(raw + offset) · scale``
(Documentation/ABI/testing/sysfs-bus-iio), from which the bundle's units follow.

Limit: polled at the rate, one file for each channel: some hundred samples per second, without the kernel's buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np

from nonn.errors import DataError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn.sensing.spec import to_unit
from nonn_device.sources import Samples, SampleSource, SourceOptions

__all__ = ["ROOT", "open_source"]

ROOT = Path("/sys/bus/iio/devices")
BATCH_S = 0.1  # samples that are passed on together

_KINDS = {  # first letters of a channel's name → kind of the kernel, its unit
    "acc": ("accel", "m/s2"),
    "gyr": ("anglvel", "rad/s"),
    "anglvel": ("anglvel", "rad/s"),
    "mag": ("magn", "gauss"),
}


@dataclass(frozen=True)
class _Channel:
    """One channel: value = (raw + offset) · factor."""

    file: Path
    offset: float
    factor: float

    def read(self) -> float:
        """The value; NaN if the sensor does not answer."""
        try:
            return (float(self.file.read_text()) + self.offset) * self.factor
        except (OSError, ValueError):
            return nan


def open_source(options: SourceOptions, spec: SensingSpec, clock: DataClock, root: Path | None = None) -> SampleSource:
    """Finds the channels of a unit; ``root`` replaces sysfs.

    Raises:
        DataError: a device or channel does not exist.
        ConfigError: a unit does not fit.
    """
    root = root or ROOT
    devices = [_device(root, name.strip(), options.text) for name in options.where.split(",")]
    channels = [
        _channel(devices, name, unit, options.text) for name, unit in zip(spec.channels, spec.units, strict=True)
    ]
    rate = options.options.get("rate", spec.rate_hz)
    for device in devices:
        with contextlib.suppress(OSError):  # without it the sensor has its usual rate
            (device / "sampling_frequency").write_text(f"{rate:g}")

    async def poll() -> AsyncIterator[Samples]:
        due, batch = clock.true(), max(1, round(rate * BATCH_S))
        while True:
            times, values = [], []
            for _ in range(batch):
                due = max(due + 1 / rate, clock.true() - BATCH_S)  # after a suspend, it does not catch up
                await asyncio.sleep(max(0.0, due - clock.true()))
                times.append(clock())
                values.append(await asyncio.to_thread(lambda: [channel.read() for channel in channels]))
            yield Samples(np.array(times), np.array(values))

    return poll


def _device(root: Path, wanted: str, text: str) -> Path:
    """The folder of a device."""
    names = {}
    for folder in sorted(root.glob("iio:device*")):
        name = (folder / "name").read_text().strip() if (folder / "name").is_file() else ""
        if wanted in (name, folder.name, folder.name.removeprefix("iio:device")):
            return folder
        names[folder.name] = name
    found = ", ".join(f"{folder.removeprefix('iio:device')} ({name})" for folder, name in names.items()) or "none"
    raise DataError(
        f"--source {text}: no IIO device '{wanted}' in {root}; there are: {found}. On a Raspberry Pi a sensor "
        "needs its overlay in /boot/firmware/config.txt, for example dtoverlay=rpi-sense"
    )


def _channel(devices: list[Path], name: str, unit: str, text: str) -> _Channel:
    """The files of a channel."""
    match = re.fullmatch(r"([a-z]+)\w*?_?([xyz])", name.lower())
    kind = next((_KINDS[key] for key in _KINDS if match and match[1].startswith(key)), None)
    if match is None or kind is None:
        raise DataError(
            f"--source {text}: channel '{name}' of the bundle is none of IIO; acc_x, gyr_y and mag_z are: build the "
            "bundle with such names in sensing.channels, or feed the node with --source -"
        )
    axis = f"in_{kind[0]}_{match[2]}"
    for device in devices:
        file = device / f"{axis}_raw"
        if file.is_file():
            scale = _constant(device, axis, kind[0], "scale", 1.0) * to_unit(kind[1], unit, f"channel '{name}'")
            return _Channel(file, _constant(device, axis, kind[0], "offset", 0.0), scale)
    where = ", ".join(str(device) for device in devices)
    raise DataError(f"--source {text}: no {axis}_raw for channel '{name}' in {where}; name all its sensors: iio:0,1")


def _constant(device: Path, axis: str, kind: str, what: str, default: float) -> float:
    """Scale or offset of one axis, or of all axes."""
    for file in (device / f"{axis}_{what}", device / f"in_{kind}_{what}"):
        if file.is_file():
            return float(file.read_text())
    return default
