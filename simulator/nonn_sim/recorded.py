"""Recordings for live runs of nodes that sense: what goes wrong when, and the files that the nodes replay.

A lost window has no samples at its node, where the simulator loses it on the way. A sensor that hangs repeats one
value; a camera without light shows a black picture.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.bundle.views import View, select_view
from nonn.errors import ConfigError
from nonn.sensing import SensingSpec
from nonn_sim.playback import write_pictures
from nonn_sim.sensing_scenario import SensingScenario

__all__ = ["SensingFaults", "plan_of", "recorded", "step_of"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SensingFaults:
    """What goes wrong.

    Attributes:
        lost: windows whose samples are missing, of each unit [n, N].
        flat: windows in which its sensor hangs [n, N].
        killed: window from which on the process of a unit is gone.
        offset_s: error of each clock [N].
        drift_ppm: error of the rate of each clock [N].
    """

    lost: Bools
    flat: Bools
    killed: Mapping[int, int]
    offset_s: tuple[float, ...]
    drift_ppm: tuple[float, ...]

    @property
    def works(self) -> Bools:
        """Windows that have data, of each unit [n, N]."""
        works = ~(self.lost | self.flat)
        for unit, since in self.killed.items():
            works[since:, unit] = False
        return works


def step_of(spec: SensingSpec) -> float:
    """Time from one window of a recording to the next, in seconds; answers between them are of parts of both.

    Raises:
        ConfigError: the ends of windows do not meet this grid.
    """
    step_s = spec.hop_s if spec.frame else spec.window_s
    if not math.isclose(step_s / spec.hop_s, round(step_s / spec.hop_s)):
        raise ConfigError(
            f"sensing.hop_s = {spec.hop_s:g}: a window of {step_s:g} s is no multiple of it, so single windows cannot "
            "be replayed; choose another hop"
        )
    return step_s


def plan_of(scenario: SensingScenario, units: int, windows: int, step_s: float) -> SensingFaults:
    """Draws what goes wrong in so many windows of so many units."""
    config, rng = scenario.units, np.random.default_rng(scenario.sensing.seed)
    leave = 1 / config.burst
    enter = leave * config.loss / (1 - config.loss)
    lost, flat = np.zeros((windows, units), bool), np.zeros((windows, units), bool)
    for unit in range(units):
        lossy, until = False, -1.0
        for k in range(windows):
            lossy = rng.random() < (1 - leave if lossy else enter)
            if config.flat_every_h and k >= until and rng.random() < step_s / (3600 * config.flat_every_h):
                until = k + rng.exponential(config.flat_s) / step_s
            lost[k, unit], flat[k, unit] = lossy, k < until
    wrong = rng.uniform(-1, 1, (2, units)) * [[config.offset_s], [config.drift_ppm]]
    return SensingFaults(lost, flat & ~lost, {}, *(tuple(row) for row in wrong.tolist()))


def recorded(
    stem: Path, bundle: Bundle, unit: int, inputs: NDArray[Any], plan: SensingFaults, begin: float, speed: float
) -> str:
    """Writes the recording of one unit; returns its source."""
    spec, view = bundle.sensing_of(unit), bundle.manifest.students[unit].view
    own = select_view(inputs, View(view.channels))
    wrong = f"speed={speed:g}&offset={plan.offset_s[unit]:g}&drift={plan.drift_ppm[unit]:g}"
    if spec.frame:
        _write_pictures(stem.with_suffix(".npz"), own, plan, unit, spec)
        return f"nonn_sim.playback:pictures?file={stem.with_suffix('.npz')}&start={begin:.6f}&{wrong}"
    _write_samples(stem.with_suffix(".csv"), own, plan, unit, spec)
    return f"csv:{stem.with_suffix('.csv')}?start={begin + 1 / spec.rate_hz / speed:.6f}&{wrong}"


def _write_pictures(path: Path, own: NDArray[Any], plan: SensingFaults, unit: int, spec: SensingSpec) -> None:
    """Each picture is shown for a hop; the last of its frames is at the instant of the answer.

    After a loss it begins later: its first frame would be within the tolerance of the instant that was lost.
    """
    frames = max(1, round(spec.rate_hz * spec.hop_s))
    after = (np.arange(frames) + 1) / frames * spec.hop_s
    there = np.flatnonzero(~plan.lost[:, unit])
    shown = own[there]
    shown[plan.flat[there, unit]] = 0
    early = after < min(2 * spec.tolerance_s, spec.hop_s)
    kept = ~(~np.isin(there - 1, there)[:, None] & early)
    times = there[:, None] * spec.hop_s + after
    write_pictures(path, times[kept], shown.repeat(frames, axis=0)[kept.ravel()])


def _write_samples(path: Path, own: NDArray[Any], plan: SensingFaults, unit: int, spec: SensingSpec) -> None:
    """One window after the other; the first one is never lost, so that all recordings begin at the same time."""
    scale = np.array(spec.scale)[:, None]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", *spec.channels])
        for k, window in enumerate(own):
            if plan.lost[k, unit] and k:
                continue
            values = (np.repeat(own[0][:, :1], spec.samples, 1) if plan.flat[k, unit] else window) / scale
            for j, row in enumerate(values.T):
                at = k * spec.window_s + (j + 1) / spec.rate_hz
                writer.writerow([f"{at:.4f}", *(f"{v:.6g}" for v in row)])
