"""Scenarios of the simulator in which nothing happens but what a test adds."""

from __future__ import annotations

from typing import Any

from nonn_sim.deployments import bundle_deployment
from nonn_sim.engine import Engine
from nonn_sim.scenario_file import parse_scenario

from nonn.bundle import Bundle

NUM_DEVICES = 4
QUIET: dict[str, dict[str, Any]] = {
    "scenario": {"name": "quiet", "requests": 500},
    "load": {"rate_per_s": 100.0},
    "policy": {"deadline_s": 0.1},
    "nodes": {"service_s": 0.004},
    "link": {"latency_s": 0.001},
}


def world(**sections: Any) -> Any:
    """A scenario: the quiet one, with keys of sections added or replaced."""
    tree = {name: dict(values) for name, values in QUIET.items()}
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    if "speed_macs_per_s" in tree["nodes"]:
        tree["nodes"].pop("service_s")
    if "duration_s" in tree["scenario"]:
        tree["scenario"].pop("requests")
    return parse_scenario(tree)


def trace_of(scenario: Any, bundle: Bundle, deployment: Any = None, seed: int = 0) -> Any:
    """The trace of one run of a scenario, by default in the bundle's own deployment."""
    return Engine(scenario, bundle.num_devices, deployment or bundle_deployment(bundle), seed).run()
