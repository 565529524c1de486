from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.light import BLOCKED, python
from tests.toys import toy_bundle

# All that a node loads besides the standard library; grpc loads its last two where they are installed.
PACKAGES = {"nonn", "nonn_device", "numpy", "onnxruntime", "uvloop", "google", "typing_extensions"}
PACKAGES |= {"grpc", "grpc_health", "grpc_reflection", "grpc_tools"}
PARTS = {"arguments", "bundle", "commandline", "errors", "files", "rpc", "security", "sensing", "telemetry"}


@pytest.mark.parametrize("name", BLOCKED)
def test_the_blocker_blocks(name: Any) -> None:
    assert f"{name} is blocked" in python(f"import {name}").stderr


@pytest.mark.parametrize(
    "module",
    [
        "nonn_device.node",
        "nonn_device.runtime",
        "nonn_device.join",
        "nonn_device.pairing_options",
        "nonn.aggregator.membership.options",
        "nonn.aggregator.membership.pairing_server",
        "nonn.aggregator.server",
        "nonn.fusion",
        "nonn.client",
        "nonn.cluster",
        "nonn.cli.config",
        "nonn.cli.serve",
        "nonn.cli.up",
        "nonn.cli.top",
        "nonn.cli.predict",
    ],
)
def test_a_module_of_serving_imports_with_the_base_install_alone(module: Any) -> None:
    imported = python(f"import {module}")
    assert imported.returncode == 0, imported.stderr


def test_every_option_is_printed_with_the_base_install_alone() -> None:
    printed = python("import sys; from nonn.cli import main; sys.exit(main(['config']))")
    assert printed.returncode == 0, printed.stderr
    assert "dealt-eigenvector" in printed.stdout


def test_a_node_serves_with_the_base_install_alone_and_without_what_others_need(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    # Standard input is empty, so the node ends as soon as it has said that it serves.
    program = """
import nonn_device.commands.join, nonn_device.publish, nonn_device.sources.recording
from nonn_device.cli import main
from nonn_device.vitals import peak_bytes, resident_bytes
assert main(sys.argv[1:]) == 0
freed = peak_bytes() - resident_bytes()
packages = {name for name, module in sys.modules.items() if "." not in name and getattr(module, "__file__", None)}
parts = {name.split(".")[1] for name in sys.modules if name.startswith("nonn.")}
print(sorted(packages - sys.stdlib_module_names), sorted(parts), freed, sep="\\n", file=sys.stderr)
"""
    served = python(program, "serve", str(bundle.path), "--student", "0", "--watch-stdin")
    assert served.returncode == 0, served.stderr
    assert json.loads(served.stdout)["event"] == "ready"
    packages, parts, freed = map(ast.literal_eval, served.stderr.splitlines()[-3:])
    assert {name for name in packages if name[0] != "_"} <= PACKAGES
    assert set(parts) <= PARTS
    assert freed > 5_000_000, "the code of the start is still mapped"


def test_training_without_its_extra_gives_the_install_command() -> None:
    program = "import sys; sys.modules['torch'] = None; import nonn; nonn.run"  # as if it were not installed
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "MissingExtraError" in ended.stderr
    assert "pip install 'nonn[train]'" in ended.stderr
