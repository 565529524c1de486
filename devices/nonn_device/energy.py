"""Energy of an answer, where this device has a meter that Linux can read.

Energy of one answer = (power while the student runs − power at rest) × its time + its bytes × energy of a byte. The
result is a device's ``joule_per_mac`` and ``joule_per_byte``, so that it is valid for students of any size. The meters,
in the order in which they are tried:

===============  ======================================================================================================
``hwmon``        a power monitor of the INA2xx family on I²C (INA219, INA226, …) before the device's supply:
                 ``power1_input`` of the kernel's driver ina2xx, microwatts
``power_supply`` a battery that is discharging: ``power_now``, or ``current_now`` and ``voltage_now``
``powercap``     counters of the processor package (RAPL, Intel and AMD): ``energy_uj``; readable by root only
===============  ======================================================================================================

Limits: an INA2xx measures the whole device and a counter only the processor, so figures of different meters do not
compare. A battery reports its power every few seconds. Other programs that run are measured too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nonn.errors import ConfigError

__all__ = ["Energy", "Meter", "find_meter", "measure_energy"]

MEASURE_S = 10.0  # each of rest, student and link: several reports of a battery
LOOK_S = 0.1  # between two readings of power

Clock = Callable[[], float]


@dataclass(frozen=True)
class Meter:
    """A meter of power or of energy.

    Attributes:
        name: where its figures come from, for the result.
        read: watts now or, if it counts, joules so far.
        counts: whether it counts joules.
        wraps_j: value at which a counter starts from 0 again; 0 if it never does.
    """

    name: str
    read: Callable[[], float]
    counts: bool = False
    wraps_j: float = 0.0

    def mean_w(self, work: Callable[[], object], seconds: float, clock: Clock = time.monotonic) -> float:
        """Mean power while ``work`` is called again and again, watts."""
        start = looked = clock()
        first, readings = self.read(), list[float]()
        while (now := clock()) < start + seconds:
            work()
            if not self.counts and now >= looked + LOOK_S:
                readings.append(self.read())
                looked = now
        if not self.counts:
            return sum(readings) / len(readings) if readings else self.read()
        used = self.read() - first
        return (used + self.wraps_j if used < 0 else used) / (clock() - start)


@dataclass(frozen=True)
class Energy:
    """Energy of this device.

    Attributes:
        meter: that measured it.
        idle_w: power at rest.
        active_w: power while a student runs on one thread.
        joule_per_mac: energy of a multiply-accumulate, above rest.
        joule_per_byte: energy of a byte to or from an aggregator, above rest; 0 without a link.
    """

    meter: str
    idle_w: float
    active_w: float
    joule_per_mac: float
    joule_per_byte: float = 0.0


def find_meter(given: Path | None = None, root: Path = Path("/sys/class")) -> Meter:
    """The meter of this device.

    Args:
        given: a file in microwatts to read instead of looking for a meter.
        root: the kernel's classes of devices.

    Raises:
        ConfigError: there is none, it cannot be read, or the battery is being charged.
    """
    if given is not None:
        return _gauge(str(given), given)
    for chip in sorted(root.glob("hwmon/hwmon*")):
        if _text(chip / "name").startswith("ina2") and (chip / "power1_input").exists():
            return _gauge(f"{_text(chip / 'name')}, {chip / 'power1_input'}", chip / "power1_input")
    for supply in sorted(root.glob("power_supply/*")):
        if _text(supply / "type") == "Battery" and _text(supply / "scope") in ("", "System"):
            return _battery(supply)
    packages = [p for p in sorted(root.glob("powercap/intel-rapl:*")) if _text(p / "name").startswith("package")]
    if packages:
        package = packages[0]
        wraps_j = _number(package / "max_energy_range_uj") * 1e-6
        name = f"{_text(package / 'name')}, {package / 'energy_uj'}"
        return _checked(Meter(name, lambda: _number(package / "energy_uj") * 1e-6, counts=True, wraps_j=wraps_j))
    raise ConfigError(
        f"--energy: no meter under {root}: no INA2xx in hwmon, no battery, no processor counter in powercap; connect "
        "an INA219 before the supply, or name a file in microwatts: --energy FILE"
    )


def measure_energy(
    meter: Meter,
    run: Callable[[], object],
    macs: int,
    send: Callable[[], object] | None = None,
    sent_bytes: int = 0,
    *,
    seconds: float = MEASURE_S,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Energy:
    """Measures rest, then a student, then the link.

    Args:
        meter: of this device.
        run: runs the student once.
        macs: of one run.
        send: sends ``sent_bytes`` to an aggregator; None without a link.
        sent_bytes: of one call.
        seconds: of each measurement.
        clock: in seconds.
        sleep: waits.

    Raises:
        ConfigError: the student takes no more power than rest.
    """
    idle_w = meter.mean_w(lambda: sleep(LOOK_S), seconds, clock)
    active_w, macs_per_s = _loaded(meter, run, macs, seconds, clock)
    if active_w <= idle_w:
        raise ConfigError(
            f"--energy: {meter.name} shows {idle_w:.3g} W at rest and {active_w:.3g} W with a student: it does not "
            "measure this processor, or other programs are running"
        )
    per_byte = 0.0
    if send is not None:
        sending_w, bytes_per_s = _loaded(meter, send, sent_bytes, seconds, clock)
        per_byte = max(0.0, sending_w - idle_w) / bytes_per_s
    return Energy(meter.name, idle_w, active_w, (active_w - idle_w) / macs_per_s, per_byte)


def _loaded(meter: Meter, work: Callable[[], object], amount: int, seconds: float, clock: Clock) -> tuple[float, float]:
    """Power while work is done, and the amount of it a second."""
    done, start = 0, clock()

    def once() -> None:
        nonlocal done
        work()
        done += amount

    return meter.mean_w(once, seconds, clock), done / (clock() - start)


def _battery(supply: Path) -> Meter:
    """A battery that is being discharged."""
    if (status := _text(supply / "status")) != "Discharging":
        raise ConfigError(f"--energy: the battery {supply.name} is {status.lower()}: unplug the charger")
    if (supply / "power_now").exists():
        return _gauge(f"battery {supply.name}", supply / "power_now")
    current, voltage = supply / "current_now", supply / "voltage_now"
    return _checked(Meter(f"battery {supply.name}", lambda: abs(_number(current) * _number(voltage)) * 1e-12))


def _gauge(name: str, file: Path) -> Meter:
    """A file in microwatts; some drivers give a discharge a minus."""
    return _checked(Meter(name, lambda: abs(_number(file)) * 1e-6))


def _checked(meter: Meter) -> Meter:
    """A meter that can be read."""
    meter.read()
    return meter


def _number(file: Path) -> float:
    try:
        return float(file.read_text())
    except PermissionError as exc:
        raise ConfigError(f"--energy: {file}: only root may read it; run the command with sudo") from exc
    except (OSError, ValueError) as exc:
        raise ConfigError(f"--energy: {file}: does not contain a number ({exc})") from exc


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
