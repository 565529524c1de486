"""Run by ``tests/test_sim_ray.py`` in an environment that has Ray: prints what Ray and this process computed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nonn_sim.scenario_file import load_scenario
from nonn_sim.simulate import simulate

from nonn.bundle import load_bundle

if __name__ == "__main__":
    bundle, scenario = load_bundle(Path(sys.argv[1])), load_scenario(Path(sys.argv[2]))
    print(json.dumps({backend: simulate(scenario, bundle, seeds=2, backend=backend) for backend in ("ray", "local")}))
