"""Replays recorded faults in virtual time.

A log of a simulation (``nonn-sim run … --record``), replayed under the same scenario, reproduces that simulation bit
for bit; a log of a live run or from the field gives the simulator's figures for those faults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nonn.bundle import Bundle
from nonn_sim.faults import read_log
from nonn_sim.scenario_file import load_scenario, parse_scenario
from nonn_sim.simulate import simulate_once

__all__ = ["replay"]

MIN_DURATION_S = 1.0  # of a log whose only event is at its start


def replay(log: Path, bundle: Bundle, scenario_path: Path | None = None) -> dict[str, Any]:
    """Runs the bundle under recorded faults.

    Args:
        log: see ``nonn_sim.faults.read_log``.
        bundle: the artifact.
        scenario_path: devices, links, load and length; schedule, churn and batteries are left out. Without it there
            are ten requests per second until the last event.

    Returns:
        As ``nonn_sim.simulate.simulate``, with one row.

    Raises:
        DataError: the log cannot be read.
        ConfigError: the scenario cannot be read, or the log has a device or cell that does not exist.
    """
    events = read_log(log)
    if scenario_path is not None:
        scenario = load_scenario(scenario_path)
    else:
        run = {"name": log.stem, "duration_s": max(MIN_DURATION_S, events[-1].time_s)}
        scenario = parse_scenario({"scenario": run}, source=str(log))
    row, _ = simulate_once(scenario, bundle, events)
    return {
        "schema": 1,
        "scenario": scenario.scenario.name,
        "bundle": bundle.hash,
        "seeds": [scenario.scenario.seed],
        "rows": [row],
        "not_compared": [],
    }
