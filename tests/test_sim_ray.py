"""Runs of the simulator on a real Ray cluster.

Ray is 280 MB and pins packages of its own, so it lives in an environment of its own, ``.venv-sim-ray``, which is made
at the first run and kept; all else comes from the environment of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.toys import toy_bundle

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".venv-sim-ray"
INSTALL_TIMEOUT_S, RUN_TIMEOUT_S = 400, 200
SCENARIO = """
[scenario]
name = "ray"
requests = 100

[nodes]
mtbf_s = 1.0
mttr_s = 0.5
"""


@pytest.fixture(scope="module")
def ray_python() -> Any:
    """A Python with Ray; without a way to install it there is nothing to test."""
    ready, python = ENVIRONMENT / ".ready", ENVIRONMENT / "bin/python"
    if not ready.exists():
        venv: list[str | Path] = [sys.executable, "-m", "venv", "--clear", ENVIRONMENT]
        constraints = HERE.parent / "constraints.txt"
        install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "-c", constraints, "ray>=2.40"]
        for command in (venv, install):
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
            if done.returncode:
                pytest.skip(f"{' '.join(map(str, command))}: {done.stderr[-1000:]}")
        ready.touch()
    # Behind its own packages those of this environment, editable ones with their import paths too.
    behind = next(ENVIRONMENT.glob("lib/python*/site-packages")) / "tests.pth"
    behind.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_TIMEOUT_S + RUN_TIMEOUT_S + 60)
def test_a_real_ray_cluster_computes_what_this_process_computes(ray_python: Any, tmp_path: Path) -> None:
    bundle, scenario = toy_bundle(tmp_path / "bundle", num_devices=4), tmp_path / "ray.toml"
    scenario.write_text(SCENARIO)
    done = subprocess.run(
        [ray_python, HERE / "ray_checks.py", bundle.path, scenario],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ray"] == found["local"]
    assert len(found["ray"]["seeds"]) == 2
    assert found["ray"]["rows"][0]["requests"] == 100
