"""A sensing scenario: units with wrong clocks, links, failing sensors and batteries, as a TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from nonn.errors import ConfigError
from nonn.toml import Range, Rules, from_mapping, parse_toml
from nonn.toml.constraints import NotNegative, Positive, Whole

__all__ = ["BatteryConfig", "SensingScenario", "UnitConfig", "load_sensing_scenario"]

Share = Annotated[float, Range(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class SensingRunConfig:
    """The run."""

    name: Annotated[str, "name of the scenario"] = "sensing"
    seed: Annotated[Whole, "seed of all random numbers"] = 0
    hours: Annotated[Positive, "duration, in hours of the units"] = 1.0
    accuracy_goal: Annotated[Share, "units beyond those that reach it rest; 0: all units work"] = 0.0
    duty_period_s: Annotated[Positive, "time after which the working units are chosen again"] = 600.0


@dataclass(frozen=True, kw_only=True)
class UnitConfig:
    """Every unit: its clock, its link and its sensor."""

    offset_s: Annotated[NotNegative, "clocks are wrong by up to this, either way"] = 2.0
    drift_ppm: Annotated[NotNegative, "clocks are too fast or slow by up to this"] = 100.0
    compute_s: Annotated[NotNegative, "time of the student"] = 0.02
    delay_s: Annotated[NotNegative, "least delay of the link, each way"] = 0.005
    jitter_s: Annotated[NotNegative, "mean of its further delay, exponential"] = 0.02
    loss: Annotated[float, Range(ge=0, lt=1), "share of the windows that are lost"] = 0.0
    burst: Annotated[float, Range(ge=1), "mean number of windows lost in a row"] = 3.0
    flat_every_h: Annotated[NotNegative, "mean time between two failures of a sensor, in hours; 0: none"] = 0.0
    flat_s: Annotated[Positive, "mean time until it works again"] = 300.0


@dataclass(frozen=True, kw_only=True)
class BatteryConfig:
    """Charge and power of every unit."""

    joules: Annotated[NotNegative, "energy of a full battery; 0: units have none"] = 0.0
    charge: Annotated[tuple[Share, ...], "charge of each unit at the start; empty: full"] = ()
    idle_mw: Annotated[NotNegative, "power of the unit with its sensor, always"] = 1.0
    window_mj: Annotated[NotNegative, "energy of the student for one window"] = 2.0
    wake_mj: Annotated[NotNegative, "energy of the radio for one message"] = 5.0


@dataclass(frozen=True, kw_only=True)
class SensingScenario:
    """The file."""

    sensing: SensingRunConfig = field(default_factory=SensingRunConfig)
    units: UnitConfig = field(default_factory=UnitConfig)
    battery: BatteryConfig = field(default_factory=BatteryConfig)

    def rules(self) -> Rules:
        """Rules that relate several tables."""
        lasting = self.units.burst > self.units.loss / (1 - self.units.loss)
        yield "units.burst", lasting, "so large a loss needs longer bursts"


def load_sensing_scenario(path: Path) -> SensingScenario:
    """Reads a scenario.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is invalid; it names file and key.
    """
    tree = parse_toml(path)
    if "scenario" in tree:
        raise ConfigError(f"{path}: a scenario of requests; run it with nonn-sim run")
    return from_mapping(SensingScenario, tree, source=str(path))
