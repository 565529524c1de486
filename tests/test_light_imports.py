from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.serving import TIMEOUT_S
from tests.toys import toy_bundle

# Everything that the base install does not have, and scipy and networkx by name.
BLOCKED = (
    "torch",
    "networkx",
    "scipy",
    "sklearn",
    "onnx",
    "pyarrow",
    "PIL",
    "matplotlib",
    "rich",
    "prometheus_client",
    "aiohttp",
    "opentelemetry",
    "cryptography",
)
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
"""


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKER + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("name", BLOCKED)
def test_the_blocker_blocks(name):
    assert f"{name} is blocked" in python(f"import {name}").stderr


@pytest.mark.parametrize(
    "module",
    [
        "nonn_device.node",
        "nonn_device.runtime",
        "nonn_device.join",
        "nonn.aggregator.membership.options",
        "nonn.aggregator.server",
        "nonn.fusion",
        "nonn.client",
        "nonn.cluster",
        "nonn.cli.serve",
        "nonn.cli.up",
        "nonn.cli.top",
        "nonn.cli.predict",
    ],
)
def test_a_module_of_serving_imports_with_the_base_install_alone(module):
    imported = python(f"import {module}")
    assert imported.returncode == 0, imported.stderr


def test_a_node_serves_with_the_base_install_alone(tmp_path):
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    # Standard input is empty, so the node ends as soon as it has said that it serves.
    program = "from nonn_device.cli import main; sys.exit(main(sys.argv[1:]))"
    served = python(program, "serve", str(bundle.path), "--student", "0", "--watch-stdin")
    assert served.returncode == 0, served.stderr
    assert json.loads(served.stdout)["event"] == "ready"
