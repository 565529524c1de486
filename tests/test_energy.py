"""Energy of an answer: meters of a made sysfs, a made clock, and the figures in placement and report."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from nonn_device import energy
from nonn_device.energy import Energy, Meter, find_meter, measure_energy
from nonn_device.probe import Measured, device_entry
from nonn_sim.placement_file import load_devices, placement_summary

from nonn.cli import main
from nonn.config.devices import DeviceClassConfig, DevicesConfig
from nonn.errors import ConfigError
from nonn.experiment.placement import place_students
from nonn.report import build_report
from nonn.report.overview import device_table
from nonn.report.table import as_text
from tests.reports import rewritten
from tests.toys import toy_bundle

INA = {"hwmon/hwmon0/name": "nvme", "hwmon/hwmon3/name": "ina219", "hwmon/hwmon3/power1_input": "2500000"}
BATTERY = {"type": "Battery", "status": "Discharging", "current_now": "-500000", "voltage_now": "4000000"}
RAPL = {"name": "package-0", "energy_uj": "7000000", "max_energy_range_uj": "9000000"}


def made(root: Path, files: Mapping[str, str], folder: str = "") -> None:
    for name, text in files.items():
        file = root / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")


def test_the_meter_of_a_device_is_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no meter .*connect an INA219 before the supply"):
        find_meter(root=tmp_path)
    made(tmp_path, RAPL, "powercap/intel-rapl:0")
    counter = find_meter(root=tmp_path)
    assert (counter.read(), counter.counts, counter.wraps_j) == (7.0, True, 9.0)
    made(tmp_path, {"type": "Battery", "scope": "Device"}, "power_supply/pen")
    made(tmp_path, BATTERY, "power_supply/BAT0")
    assert find_meter(root=tmp_path).read() == pytest.approx(2.0)
    made(tmp_path, {"power_now": "3000000"}, "power_supply/BAT0")
    assert find_meter(root=tmp_path).read() == pytest.approx(3.0)
    made(tmp_path, INA)
    assert find_meter(root=tmp_path).read() == pytest.approx(2.5)
    assert "ina219" in find_meter(root=tmp_path).name
    (tmp_path / "watt").write_text("1")
    assert find_meter(tmp_path / "watt").read() == pytest.approx(1e-6)


def test_a_meter_that_says_nothing_of_the_device_is_refused(tmp_path: Path) -> None:
    made(tmp_path, BATTERY | {"status": "Charging"}, "power_supply/BAT0")
    with pytest.raises(ConfigError, match="the battery BAT0 is charging: unplug the charger"):
        find_meter(root=tmp_path)
    (tmp_path / "text").write_text("much")
    with pytest.raises(ConfigError, match=f"--energy: {tmp_path}/text: does not contain a number"):
        find_meter(tmp_path / "text")


class World:
    """A device whose clock goes on while it works: 1 W at rest, 3 W with a student, 2 W while it sends."""

    def __init__(self) -> None:
        self.now, self.joules, self.watts = 0.0, 0.0, 1.0

    def clock(self) -> float:
        return self.now

    def passes(self, watts: float, seconds: float) -> None:
        self.now, self.watts, self.joules = self.now + seconds, watts, self.joules + watts * seconds


@pytest.mark.parametrize("counts", [False, True])
def test_energy_is_power_above_rest_by_the_speed_and_by_the_bytes(counts: bool) -> None:
    world = World()
    meter = Meter("made", lambda: world.joules % 35 if counts else world.watts, counts, 35.0)  # the counter wraps once
    found = measure_energy(
        meter,
        functools.partial(world.passes, 3.0, 0.125),
        1000,  # 8,000 a second
        functools.partial(world.passes, 2.0, 0.25),
        50,  # 200 a second
        seconds=8.0,
        clock=world.clock,
        sleep=functools.partial(world.passes, 1.0),
    )
    assert found.idle_w == pytest.approx(1.0)
    assert found.active_w == pytest.approx(3.0)
    assert found.joule_per_mac == pytest.approx(2.0 / 8000)
    assert found.joule_per_byte == pytest.approx(1.0 / 200)


def test_doctor_refuses_a_file_that_does_not_follow_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(energy, "measure_energy", functools.partial(measure_energy, seconds=0.0))
    (tmp_path / "power1_input").write_text("1500000\n")
    assert main(["doctor", "--device", "--energy", str(tmp_path / "power1_input")]) == 3
    assert "1.5 W at rest and 1.5 W with a student" in capsys.readouterr().err
    assert main(["doctor", "--energy"]) == 2
    assert "--energy requires --device" in capsys.readouterr().err


def test_a_measured_device_is_an_entry_whose_placement_and_report_state_energy(tmp_path: Path) -> None:
    entry = device_entry("pi", Measured(1e9, 10**9), Energy("made", 1.0, 3.0, 2e-9, 1e-7))
    (tmp_path / "machines.toml").write_text(
        "[[device]]\nname = 'pi'\np_fail = 0.1\n" + "\n".join(line for line in entry.splitlines() if "joule_" in line)
    )
    bundle = toy_bundle(tmp_path / "bundle", num_devices=2)
    student, received = bundle.manifest.students[0], bundle.input_of(0).num_bytes
    joules = student.macs * 2e-9 + (received + student.feature_bytes) * 1e-7
    summary = placement_summary(bundle, bundle.table, load_devices(tmp_path / "machines.toml"), math.inf)
    assert [row["joules"] for row in summary["devices"]] == [pytest.approx(joules)]

    kinds = (DeviceClassConfig(name="pi", joule_per_mac=2e-9, joule_per_byte=1e-7), DeviceClassConfig(name="dark"))
    placed = place_students(bundle, DevicesConfig(count=2, classes=kinds))
    assert [one.joules for one in placed] == [pytest.approx(joules), None]
    classes = [{"p_fail": 0.1, "count": 1, "joule_per_mac": 2e-9, "joule_per_byte": 1e-7}, {"p_fail": 0.1, "count": 1}]
    known = rewritten(bundle, tmp_path / "known", provenance={"config": {"devices": {"classes": classes}}})
    report = build_report(known)
    assert [device.joules for device in report.devices] == [pytest.approx(joules), None]
    assert "energy, mJ" in as_text(device_table(report))
    assert "energy, mJ" not in as_text(device_table(build_report(bundle)))
