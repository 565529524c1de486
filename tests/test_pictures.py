"""Cameras as sensors: one picture for each instant, reasons for "no data", and sources of pictures."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_device.sources import camera, open_source, parse_source

from nonn.aggregator.sensing.raw import RawFolder
from nonn.config import SensingConfig
from nonn.errors import ConfigError, DataError, MissingExtraError, NonnError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn.sensing.pictures import PictureCutter

RATE, HOP = 4.0, 1.0
GREY = SensingSpec(RATE, 1, HOP, ("grey",), ("",), (1.0,), quiet=(10.0,), frame=(6, 8), tolerance_s=0.2)
COLOUR = SensingSpec(
    RATE, 1, HOP, ("red", "green", "blue"), ("",) * 3, (1.0,) * 3, quiet=(9.0,) * 3, frame=(6, 8), tolerance_s=0.2
)
RNG = np.random.default_rng(0)
SHOWN = RNG.integers(0, 256, (60, 1, 6, 8)).astype(np.uint8)


def picked(times: Any, shown: Any = SHOWN, until: float = 0.0, spec: SensingSpec = GREY) -> list[tuple[float, str]]:
    """Time and reason of what is picked for 1 s, 2 s and so on."""
    cutter, times = PictureCutter(spec), np.asarray(times, np.float64)
    cutter.aim(0.0)
    found = cutter.add(times, shown[: len(times)])
    return [(window.end_s, window.reason) for window in (*found, *cutter.expire(until))]


def test_the_nearest_picture_is_picked_and_keeps_its_time() -> None:
    cutter = PictureCutter(GREY)
    cutter.aim(0.0)
    times = 0.07 + np.arange(12) / RATE
    found = cutter.add(times, SHOWN[:12])
    assert [window.end_s for window in found] == pytest.approx([1.07, 2.07])
    assert found[0].values is not None
    np.testing.assert_array_equal(found[0].values, SHOWN[4])
    cutter.aim(0.2)  # the grid has moved on the node's clock
    assert [window.end_s for window in cutter.add(np.array([3.07, 3.32]), SHOWN[12:14])] == pytest.approx([3.32])


def test_pictures_that_show_no_scene_of_this_instant_are_no_data() -> None:
    steady = np.arange(24) / RATE
    assert picked([*steady[:9], *steady[17:]])[1:4] == [(2.0, ""), (3.0, "gap"), (4.0, "gap")]
    assert picked(steady[:6], until=3.5) == [(1.0, ""), (2.0, "silent"), (3.0, "silent")]
    dark = SHOWN.copy()
    dark[6:] = RNG.integers(0, 3, dark[6:].shape)  # the noise of a covered camera
    assert picked(steady[:13], dark) == [(1.0, ""), (2.0, "flat"), (3.0, "flat")]
    frozen = SHOWN.copy()
    frozen[4:] = frozen[4]
    assert picked(steady, frozen)[:4] == [(1.0, ""), (2.0, ""), (3.0, "frozen"), (4.0, "frozen")]
    # A connection lags: what comes after 3 s shows the second before.
    cutter = PictureCutter(GREY)
    cutter.aim(0.0)
    cutter.add(steady[:6], SHOWN[:6])
    cutter.expire(3.5)
    assert cutter.add(np.array([1.6, 1.7]), SHOWN[6:8]) == []
    assert [window.reason for window in cutter.expire(4.5)] == ["old"]


def test_a_clock_that_is_set_back_begins_anew_and_one_reading_twice_is_one() -> None:
    times = [0.5, 0.75, 0.75, 1.0, 1.25, 0.6, 0.8, 1.0, 1.2]
    assert picked(times) == [(1.0, ""), (1.0, "")]


def test_a_specification_of_pictures_has_their_contrast_and_a_tolerance() -> None:
    config = SensingConfig(rate_hz=4.0, hop_s=1.0, channels=("grey",))
    made = RNG.integers(0, 256, (50, 2, 6, 8)).astype(np.uint8)
    spec = config.spec(made.shape[1:]).measured(made)
    assert (spec.frame, spec.samples, spec.channels, spec.raw_bytes) == ((6, 8), 1, ("grey",) * 2, 96)
    assert spec.tolerance_s == 0.1875
    np.testing.assert_allclose(spec.quiet, made.std(axis=(2, 3)).min(axis=0), rtol=1e-5)
    assert spec.of_view((1,)).quiet == spec.quiet[1:]
    colours = SensingConfig(rate_hz=4.0, channels=("red", "green", "blue"))
    of_second = colours.spec((6, 6, 8)).of_view((3, 4, 5))
    assert (of_second.channels, of_second.raw_bytes) == (colours.channels, 144)
    with pytest.raises(ConfigError, match=r"sensing\.units: is for windows"):
        SensingConfig(rate_hz=4.0, channels=("grey",), units=("lux",)).spec((2, 6, 8))
    with pytest.raises(ConfigError, match=r"sensing\.tolerance_s: is for pictures"):
        SensingConfig(rate_hz=4.0, channels=("x",), tolerance_s=0.1).spec((2, 8))
    with pytest.raises(ConfigError, match=r"tolerance_s: 0\.6 s; must be above 0 and at most half of the hop, 0\.5 s"):
        SensingConfig(rate_hz=4.0, hop_s=1.0, channels=("grey",), tolerance_s=0.6).spec((2, 6, 8))
    with pytest.raises(ConfigError, match=r"sensing\.channels: 2 names for inputs of 5 channels"):
        SensingConfig(rate_hz=4.0, channels=("x", "y")).spec((5, 8))


def test_raw_pictures_are_stored_by_their_times(tmp_path: Path) -> None:
    RawFolder(tmp_path).add("door", GREY, 7.0, SHOWN[0].tobytes())
    np.testing.assert_array_equal(np.load(tmp_path / "door" / "7.000.npy"), SHOWN[0])


# ---- sources


async def first(text: str, number: int, spec: SensingSpec) -> tuple[list[float], Any]:
    options, times, found = parse_source(text), list[float](), list[Any]()
    source = open_source(options, spec, options.clock())()
    async for samples in source:
        times += samples.times.tolist()
        found.append(samples.values)
        if len(times) >= number:
            break
    await source.aclose()  # type: ignore[attr-defined]
    return times, np.concatenate(found)


def take(text: str, number: int, spec: SensingSpec = GREY) -> tuple[list[float], Any]:
    return asyncio.run(first(text, number, spec))


async def program(spec: SensingSpec, clock: DataClock, height: float = 12.0) -> AsyncIterator[Any]:
    """Two pictures at once, then one, of twice the height and the same width."""
    large = SHOWN[:3].repeat(int(height) // 6, axis=2)
    yield np.array([5.0, 5.25]), large[:2]
    yield 5.5, large[2]


def test_pictures_of_a_program_are_cut_and_reduced_to_those_of_the_bundle() -> None:
    times, found = take("tests.test_pictures:program?height=6", 3)
    assert times == [5, 5.25, 5.5]
    np.testing.assert_array_equal(found, SHOWN[:3])
    _, found = take("tests.test_pictures:program", 3)
    np.testing.assert_array_equal(found, SHOWN[:3].repeat(2, axis=2)[:, :, 3:9], "the middle of a picture too high")
    with pytest.raises(DataError, match=r"pictures of 8×6 pixels; the bundle was trained on 8×9"):
        take("tests.test_pictures:program?height=6", 3, SensingSpec(**{**vars(GREY), "frame": (9, 8)}))
    with pytest.raises(DataError, match=r"the unit has uint8 \[3, 6, 8\] \(red, green, blue\)"):
        take("tests.test_pictures:program", 3, COLOUR)


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that writes three pictures and its arguments."""
    (tmp_path / "pictures").write_bytes(SHOWN[:3].tobytes())
    script = tmp_path / "ffmpeg"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nexec cat {tmp_path}/pictures\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return tmp_path


def test_a_camera_that_is_gone_is_opened_again(ffmpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "AGAIN_S", 0.0)
    times, found = take(f"v4l2:{ffmpeg / 'pictures'}?rate=10&delay=0.5", 5)
    np.testing.assert_array_equal(found, SHOWN[[0, 1, 2, 0, 1]])
    assert times == sorted(times)
    assert times[-1] < DataClock()() - 0.5
    command = (ffmpeg / "arguments").read_text()
    assert f"-f v4l2 -framerate 10 -i {ffmpeg / 'pictures'}" in command
    assert "scale=8:6:" in command
    assert "-pix_fmt gray" in command


def test_a_video_is_replayed_at_the_rate_of_the_bundle(ffmpeg: Path) -> None:
    times, found = take(f"video:{ffmpeg / 'pictures'}?start=1000&speed=1000&offset=2", 9)
    assert times == pytest.approx([1_000_002, 1_000_002.25, 1_000_002.5])
    np.testing.assert_array_equal(found, SHOWN[:3])
    assert "fps=4" in (ffmpeg / "arguments").read_text()
    (ffmpeg / "pictures").write_bytes(b"")
    with pytest.raises(DataError, match="ffmpeg finds no picture in it"):
        take(f"video:{ffmpeg / 'pictures'}", 1)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="apt-get install ffmpeg")
def test_ffmpeg_cuts_and_scales_a_video(tmp_path: Path) -> None:
    halves = "color=red:s=40x48:r=8:d=1[l];color=blue:s=40x48:r=8:d=1[r];[l][r]hstack"
    file = tmp_path / "halves.mkv"
    made = ("ffmpeg", "-loglevel", "error", "-filter_complex", halves, "-c:v", "ffv1", file)
    subprocess.run([*map(str, made)], check=True)
    times, found = take(f"video:{file}?speed=100", 99, COLOUR)
    assert found.shape == (4, 3, 6, 8)
    assert np.diff(times) == pytest.approx([0.25] * 3)
    red, blue = found[..., :3].mean(axis=(0, 2, 3)), found[..., 5:].mean(axis=(0, 2, 3))
    assert red[0] > 200 > 50 > red[2]
    assert blue[2] > 200 > 50 > blue[0]


def test_a_camera_of_a_raspberry_pi_is_read_through_picamera2(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = RNG.integers(0, 256, (480, 640, 3)).astype(np.uint8)
    states = list[Any]()

    class Picamera2:
        """What the source uses of picamera2."""

        def __init__(self, number: int) -> None:
            states.append(number)

        @staticmethod
        def global_camera_info() -> list[Any]:
            return [{}, {}]

        def create_video_configuration(self, main: Any) -> Any:
            return main

        def configure(self, main: Any) -> None:
            assert main == {"format": "BGR888", "size": (640, 480)}

        start, stop = (lambda self, what=what: states.append(what) for what in ("start", "stop"))

        def capture_request(self) -> Any:
            return types.SimpleNamespace(
                get_metadata=lambda: {"SensorTimestamp": 10**9},
                make_array=lambda name: shown,
                release=lambda: states.append("release"),
            )

    monkeypatch.setitem(sys.modules, "picamera2", types.SimpleNamespace(Picamera2=Picamera2))
    times, found = take("picamera2:1", 1, COLOUR)
    assert states == [1, "start", "release", "stop"]
    np.testing.assert_allclose(found[0], shown.reshape(6, 80, 8, 80, 3).mean(axis=(1, 3)).transpose(2, 0, 1), atol=0.51)
    assert times[0] == pytest.approx(DataClock().of_boot(1.0), abs=1)
    _, grey = take("picamera2:0", 1)
    assert grey.shape == (1, 1, 6, 8)
    with pytest.raises(DataError, match="no such camera; there are 2, numbered from 0"):
        take("picamera2:2", 1)


@pytest.mark.parametrize(
    ("text", "spec", "error", "message"),
    [
        ("v4l2:/no/video9", GREY, DataError, "/no/video9 does not exist; there are: "),
        ("video:/no/film.mp4", GREY, DataError, "/no/film.mp4 does not exist"),
        (f"video:{__file__}", GREY, MissingExtraError, "ffmpeg is not installed; get it with: sudo apt install ffmpeg"),
        ("picamera2:0", GREY, MissingExtraError, "sudo apt install python3-picamera2"),
        ("picamera2:front", GREY, ConfigError, "must be picamera2:NUMBER"),
        ("v4l2:/dev/null", SensingSpec(**{**vars(COLOUR), "channels": ("r", "g"), "units": ("",) * 2,
          "scale": (1.0,) * 2, "quiet": ()}), ConfigError, r"1 channel \(grey\) or 3"),
        ("csv:walk.csv", GREY, ConfigError, "the units of this bundle are cameras; take v4l2:DEVICE"),
        ("v4l2:/dev/video0", SensingSpec(8.0, 8, 1.0, ("acc_x",), ("",), (1.0,)), ConfigError, "bundle measure acc_x"),
    ],
)  # fmt: skip
def test_a_camera_that_cannot_be_read_is_named_with_the_remedy(
    text: str, spec: SensingSpec, error: type[NonnError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/no")
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(error, match=message):
        take(text, 1, spec)
