"""``v4l2:DEVICE`` and ``video:FILE``: a camera of Linux, or a recorded video, through the program ffmpeg.

ffmpeg reads any camera and any file, cuts the largest centre rectangle of the proportions of the bundle's pictures,
scales it to their size (bicubic), and writes bare pixels to a pipe. A camera's picture has the time of its arrival
less ``delay``; ``rate`` is asked of the camera, which has a choice of rates. A camera that is gone is opened again. A
video is sampled at the rate of the bundle and replayed in its own time, or ``speed`` times as fast, from ``start`` on.

Limit: the time from exposure to ffmpeg's output is not known; give it as ``delay`` where it matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError, DataError, MissingExtraError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn_device.sources import Samples, SampleSource, SourceOptions

__all__ = ["open_source"]

AGAIN_S = 1.0  # until a camera that is gone is opened again
_PIXELS = {1: "gray", 3: "rgb24"}

_log = logging.getLogger(__name__)


def open_source(options: SourceOptions, spec: SensingSpec, clock: DataClock) -> SampleSource:
    """Checks a camera or a video, and prepares ffmpeg.

    Raises:
        MissingExtraError: there is no ffmpeg.
        DataError: there is no such camera or file.
        ConfigError: a camera has other channels than the bundle.
    """
    path, live = Path(options.where).expanduser(), options.kind == "v4l2"
    if len(spec.channels) not in _PIXELS:
        raise ConfigError(
            f"--source {options.text}: a camera has 1 channel (grey) or 3 (red, green, blue); the unit has "
            f"{', '.join(spec.channels)}"
        )
    if not path.exists():
        cameras = ", ".join(map(str, sorted(Path("/dev").glob("video*")))) or "none"
        raise DataError(f"--source {options.text}: {path} does not exist" + (f"; there are: {cameras}" if live else ""))
    program = shutil.which("ffmpeg")
    if program is None:
        raise MissingExtraError("ffmpeg", command="sudo apt install ffmpeg")
    given, (height, width), pixels = options.options, spec.frame, _PIXELS[len(spec.channels)]
    # Without subsampled colours, which only even sizes can be cut from.
    size = f"{width}:{height}"
    filters = f"scale={size}:force_original_aspect_ratio=increase:flags=bicubic,format={pixels},crop={size}"
    if live:
        rate = ("-framerate", f"{given['rate']:g}") if "rate" in given else ()
        source = ("-fflags", "nobuffer", "-flags", "low_delay", "-f", "v4l2", *rate, "-i", str(path))
    else:
        source, filters = ("-i", str(path)), f"fps={spec.rate_hz:g},{filters}"
    output = ("-an", "-vf", filters, "-fps_mode", "passthrough", "-pix_fmt", pixels, "-f", "rawvideo", "-")
    command = (program, "-nostdin", "-hide_banner", "-loglevel", "error", *source, *output)
    if live:
        return lambda: _watch(command, spec, clock, given.get("delay", 0.0), options.text)
    return lambda: _play(command, spec, clock, options.start_s(clock), options.text)


async def _watch(
    command: tuple[str, ...], spec: SensingSpec, clock: DataClock, delay_s: float, text: str
) -> AsyncIterator[Samples]:
    """Pictures of a camera for ever."""
    while True:
        async with aclosing(_pictures(command, spec)) as pictures:
            async for picture in pictures:
                yield Samples(np.array([clock() - delay_s]), picture)
        _log.warning("--source %s: ffmpeg has ended; the camera is opened again", text)
        await asyncio.sleep(AGAIN_S)


async def _play(
    command: tuple[str, ...], spec: SensingSpec, clock: DataClock, start_s: float, text: str
) -> AsyncIterator[Samples]:
    """Pictures of a video at their times."""
    number = 0
    async with aclosing(_pictures(command, spec)) as pictures:
        async for picture in pictures:
            at = start_s + number / spec.rate_hz
            await asyncio.sleep(max(0.0, (at - clock.true()) / clock.speed))
            yield Samples(np.array([clock.at(at)]), picture)
            number += 1
    if not number:
        raise DataError(f"--source {text}: ffmpeg finds no picture in it; its message is above")


async def _pictures(command: tuple[str, ...], spec: SensingSpec) -> AsyncGenerator[NDArray[np.uint8], None]:
    """Pictures [1, C, H, W] until ffmpeg ends; its messages go to standard error."""
    height, width = spec.frame
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                data = await process.stdout.readexactly(spec.raw_bytes)
                yield np.frombuffer(data, np.uint8).reshape(1, height, width, -1).transpose(0, 3, 1, 2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
