from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.light import BLOCKED, python
from tests.toys import toy_bundle


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
import nonn_device.publish, nonn_device.sources
from nonn_device.cli import main
assert main(sys.argv[1:]) == 0
unneeded = ("nonn.fusion", "nonn.reliability", "nonn.documents", "nonn.toml", "nonn.config")
assert not [name for name in sys.modules if name.startswith(unneeded)], "4 MB"
"""
    served = python(program, "serve", str(bundle.path), "--student", "0", "--watch-stdin")
    assert served.returncode == 0, served.stderr
    assert json.loads(served.stdout)["event"] == "ready"


def test_training_without_its_extra_gives_the_install_command() -> None:
    program = "import sys; sys.modules['torch'] = None; import nonn; nonn.run"  # as if it were not installed
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "MissingExtraError" in ended.stderr
    assert "pip install 'nonn[train]'" in ended.stderr
