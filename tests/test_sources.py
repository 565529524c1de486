"""Sources of samples on a node: recordings, lines, Linux IIO, programs; and errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import pty
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_device.sources import Samples, open_source, parse_source
from nonn_device.sources.iio import open_source as open_iio
from nonn_device.sources.lines import SensorTime
from nonn_device.vitals import battery_percent

from nonn.errors import ConfigError, DataError, NonnError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from tests.recordings import write_recording

SPEC = SensingSpec(8.0, 8, 1.0, ("acc_x", "acc_y"), ("m/s2", "m/s2"), (1.0, 1.0))
CLOCK = DataClock()


def test_a_process_that_is_interrupted_between_two_clocks_does_not_shift_its_recordings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boot, interruptions = 100.0, iter([0.1, 0.3, 0.0, 0.4])

    def advanced(*_: int) -> float:
        nonlocal boot
        boot += next(interruptions, 0.0)
        return boot

    monkeypatch.setattr("nonn.sensing.clock.time.clock_gettime", advanced)
    monkeypatch.setattr("nonn.sensing.clock.time.time", lambda: boot + 1000.0)
    assert DataClock(4.0).of_boot(7.0) == pytest.approx(4.0 * 1007.0)


def opened(text: str, spec: SensingSpec = SPEC, clock: DataClock | None = None) -> Any:
    options = parse_source(text)
    return open_source(options, spec, clock or options.clock())


async def take(source: Any, samples: int) -> Samples:
    found: list[Samples] = []
    async for some in source():
        found.append(some)
        if sum(len(s.times) for s in found) >= samples:
            break
    return Samples(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def test_a_recording_is_replayed_with_its_times_on_the_nodes_wrong_clock(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "walk.csv", np.arange(32.0).reshape(2, 2, 8))
    clock = DataClock(1000.0, offset_s=2.0)
    start = clock.true() / 1000
    found = asyncio.run(take(opened(f"csv:{path}?speed=1000&start={start}", clock=clock), 16))
    assert found.values[:, 0].tolist() == [*range(8), *range(16, 24)]
    np.testing.assert_allclose(found.times, start * 1000 + np.arange(16) / 8 + 2.0, atol=1e-3)


def test_columns_are_found_by_name_with_their_units_and_a_recording_may_have_no_time(tmp_path: Path) -> None:
    path = tmp_path / "walk.csv"
    path.write_text("other, ACC_Y [g] , acc_x\n7,1,3\n7,2,\n")
    found = asyncio.run(take(opened(f"csv:{path}?speed=1000"), 2))
    np.testing.assert_allclose(found.values, [[3, 9.80665], [np.nan, 2 * 9.80665]])
    assert np.diff(found.times) == pytest.approx([1 / 8], abs=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; its first row"),
        ("time,acc_x\n0,1\n1,1\n", r"no column 'acc_y'.*columns are time, acc_x.*sensing\.channels"),
        ("time,acc_x,acc_x\n", "two columns are called 'acc_x'"),
        ("time,acc_x,acc_y\n0,1,1\n0.125,1,1\n0.1,1,1\n", r"line 4: time goes backwards, from 0\.125 to 0\.1 s"),
        ("time,acc_x,acc_y\n0,1,1\n0.5,1\n", "line 3: 2 columns, the header has 3"),
        ("time,acc_x,acc_y\n0,1,1\nx,1,1\n", "line 3: the time is not a number"),
        ("time,acc_x,acc_y\n0,1,1\n1,1,1\n2,1,1\n", "1 samples per second; the bundle was trained at 8.*record faster"),
        ("acc_x [rad/s],acc_y\n0,1\n", "column 'acc_x': values in 'rad/s' cannot be converted to 'm/s2'"),
        ("acc_x,acc_y\n0,1\n", "1 samples; a recording has two or more"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused_by_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "walk.csv"
    path.write_text(text)
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        opened(f"csv:{path}")
    assert "walk.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("csv:/no/such.csv", r"/no/such\.csv: cannot be read"),
        ("serial:/no/port", r"/no/port: cannot be opened .*dialout"),
        ("serial:/dev/null", "/dev/null: not a serial port"),
        ("serial:/dev/null?baud=7", "no usual speed"),
        ("csv", "must be csv:FILE, iio:DEVICE"),
        ("-:x", "must be csv:FILE"),
        ("csv:x?sped=2", "option 'sped' is unknown; did you mean 'speed'"),
        ("csv:x?speed=fast", "speed=fast is not a number"),
        ("csv:x?speed=0", "speed must be above 0"),
        ("no.such:factory", r"No module named 'no'.*on the PYTHONPATH"),
        ("tests.test_sources:nothing", "has no attribute 'nothing'"),
        ("tests.test_sources:program?colour=red", "unexpected keyword argument 'colour'"),
    ],
)
def test_a_source_that_does_not_exist_is_named_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(NonnError, match=message):
        opened(text)


async def program(spec: SensingSpec, clock: DataClock, step: float = 0.125, wide: str = "") -> AsyncIterator[Any]:
    """A program that feeds a node."""
    yield 5.0 + np.arange(3) * step, [[1, 2], [3, 4], [5, 6]]
    yield None, [7, 8, 9] if wide else [7, 8]


def test_a_program_feeds_a_node() -> None:
    found = asyncio.run(take(opened("tests.test_sources:program?step=0.25"), 4))
    assert found.times[:3].tolist() == [5, 5.25, 5.5]
    assert abs(found.times[3] - CLOCK.true()) < 60
    assert found.values.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    with pytest.raises(DataError, match=r"3 values a sample; the unit has 2 channels \(acc_x, acc_y\)"):
        asyncio.run(take(opened("tests.test_sources:program?wide=yes"), 4))


def test_lines_of_a_serial_port_are_samples_also_when_some_cannot_be_read() -> None:
    ours, theirs = pty.openpty()
    try:
        source = opened(f"serial:{os.ttyname(theirs)}")
        os.write(ours, b"time,acc_y,acc_x\n10.0,2,1\n10.5,4,3\n\xff garbage\n# comment\n11.0,6,5\n")
        found = asyncio.run(take(source, 4))
    finally:
        os.close(ours)
        os.close(theirs)
    assert found.values[[0, 1, 3]].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert np.isnan(found.values[2]).all()
    assert (np.diff(found.times) >= 0).all()


def test_standard_input_feeds_a_node_until_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"1 2\n3;4\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        found = asyncio.run(take(opened("-"), 99))
    assert found.values.tolist() == [[1, 2], [3, 4]]


def test_a_wrong_number_of_values_is_an_error_that_names_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"1,2,3,4\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(DataError, match=r"4 values; the unit has 2 channels \(acc_x, acc_y\), with or without"):
            asyncio.run(take(opened("-"), 1))


def test_a_sensors_own_time_is_that_of_its_fastest_line_and_begins_anew_after_a_restart() -> None:
    time = SensorTime()
    assert time.on_node(100.0, 1000.5) == 1000.5
    assert time.on_node(101.0, 1001.2) == pytest.approx(1001.2)
    assert time.on_node(102.0, 1002.9) == pytest.approx(1002.2), "this line took longer"
    assert time.on_node(0.0, 1010.0) == 1010.0


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A Sense HAT as the kernel shows it."""
    accel, gyro = tmp_path / "iio:device0", tmp_path / "iio:device1"
    files = {
        accel / "name": "lsm9ds1-accel\n",
        accel / "in_accel_x_raw": "100\n",
        accel / "in_accel_y_raw": "-200\n",
        accel / "in_accel_scale": "0.01\n",
        accel / "in_accel_y_offset": "10\n",
        accel / "sampling_frequency": "119\n",
        gyro / "name": "lsm9ds1-gyro\n",
        gyro / "in_anglvel_z_raw": "1000\n",
        gyro / "in_anglvel_z_scale": "0.001\n",
    }
    for file, text in files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_sensors_of_linux_are_read_through_sysfs_in_the_units_of_the_bundle(sysfs: Path) -> None:
    spec = SensingSpec(100.0, 8, 1.0, ("accel_x", "acc_y", "gyr_z"), ("m/s2", "g", "deg/s"), (1.0,) * 3)
    options = parse_source("iio:lsm9ds1-accel,1")
    found = asyncio.run(take(open_iio(options, spec, options.clock(), sysfs), 10))
    np.testing.assert_allclose(found.values, [[1.0, -1.9 / 9.80665, np.degrees(1.0)]] * 10)
    assert (np.diff(found.times) > 0).all()
    assert (sysfs / "iio:device0" / "sampling_frequency").read_text() == "100"
    (sysfs / "iio:device1" / "in_anglvel_z_raw").unlink()
    with pytest.raises(DataError, match=r"no in_anglvel_z_raw for channel 'gyr_z'.*iio:0,1"):
        open_iio(options, spec, options.clock(), sysfs)


@pytest.mark.parametrize(
    ("where", "channel", "message"),
    [
        ("7", "acc_x", r"no IIO device '7'.*there are: 0 \(lsm9ds1-accel\), 1 \(lsm9ds1-gyro\).*dtoverlay"),
        ("0", "ecg", "channel 'ecg' of the bundle is none of IIO; .*--source -"),
    ],
)
def test_a_sensor_of_linux_that_is_not_there_is_named(sysfs: Path, where: str, channel: str, message: str) -> None:
    spec = SensingSpec(100.0, 8, 1.0, (channel,), ("",), (1.0,))
    with pytest.raises(DataError, match=message):
        open_iio(parse_source(f"iio:{where}"), spec, CLOCK, sysfs)


def test_the_charge_of_a_battery_is_that_of_the_system(tmp_path: Path) -> None:
    assert battery_percent(tmp_path) is None
    supplies = [("a", "Battery", "Device", "5"), ("b", "Mains", "System", ""), ("c", "Battery", "System", "81")]
    for name, kind, scope, charge in supplies:
        (tmp_path / name).mkdir()
        for file, text in (("type", kind), ("scope", scope), ("capacity", charge)):
            (tmp_path / name / file).write_text(text + "\n")
    assert battery_percent(tmp_path) == 81
