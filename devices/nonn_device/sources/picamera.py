"""``picamera2:NUMBER``: a camera of a Raspberry Pi, through its package picamera2, where that is installed.

Pictures have the time at which the sensor was exposed, on the boot clock, which ``DataClock`` follows.

Limits: picamera2 comes with Raspberry Pi OS and not from PyPI; a virtual environment sees it with
``--system-site-packages``. Tested with a stand-in of its interface, not on a board.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from nonn.errors import ConfigError, DataError, MissingExtraError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn_device.sources import Samples, SampleSource, SourceOptions
from nonn_device.sources.frames import fitted

__all__ = ["open_source"]

LEAST = (480, 640)  # height and width that every camera module has
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def open_source(options: SourceOptions, spec: SensingSpec, clock: DataClock) -> SampleSource:
    """Opens the camera.

    Raises:
        MissingExtraError: picamera2 is not installed.
        DataError: there is no such camera.
        ConfigError: its number is none, or the bundle has other channels than a camera.
    """
    if not options.where.isdigit() or len(spec.channels) not in (1, 3):
        raise ConfigError(
            f"--source {options.text}: must be picamera2:NUMBER; a unit has 1 channel (grey) or 3 (red, green, blue)"
        )
    try:
        from picamera2 import Picamera2  # of Raspberry Pi OS
    except ImportError:
        raise MissingExtraError(
            "picamera2", command="sudo apt install python3-picamera2, in a venv with --system-site-packages"
        ) from None
    number, (height, width) = int(options.where), (max(a, b) for a, b in zip(LEAST, spec.frame, strict=True))
    if number >= (cameras := len(Picamera2.global_camera_info())):
        raise DataError(f"--source {options.text}: no such camera; there are {cameras}, numbered from 0")
    camera = Picamera2(number)
    # In picamera2, BGR888 has red first in memory.
    camera.configure(camera.create_video_configuration(main={"format": "BGR888", "size": (width, height)}))

    async def watch() -> AsyncIterator[Samples]:
        camera.start()
        try:
            while True:
                exposed_s, picture = await asyncio.to_thread(_captured, camera)
                pixels = picture if len(spec.channels) == 3 else (picture @ _LUMA).round()[..., None]
                at = clock.at(clock.of_boot(exposed_s))
                yield Samples(
                    np.array([at]), fitted(pixels.astype(np.uint8).transpose(2, 0, 1), spec, f"--source {options.text}")
                )
        finally:
            camera.stop()

    return watch


def _captured(camera: Any) -> tuple[float, Any]:
    """Time of exposure on the boot clock in seconds, and the picture [H, W, 3]."""
    request = camera.capture_request()
    try:
        return request.get_metadata()["SensorTimestamp"] / 1e9, request.make_array("main")
    finally:
        request.release()
