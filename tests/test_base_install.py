"""A node in an environment that has the base install alone: the last of three locks against torch and networkx.

The others are the import contract in pyproject.toml and the subprocess with both blocked in test_light_imports.py.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nonn.bundle import Bundle
from scripts.base_install import base_install, features_from_node, installed_mb
from tests.agreement import assert_features_agree
from tests.serving import TIMEOUT_S
from tests.toys import toy_bundle, toy_data


@pytest.fixture(scope="module")
def python() -> Path:
    return base_install()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("base") / "bundle", num_devices=1)


@pytest.mark.parametrize("module", ["torch", "networkx", "scipy", "sklearn", "onnx", "PIL", "rich", "cryptography"])
def test_the_base_install_has_none_of_the_extras(python: Path, module: str) -> None:
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert f"No module named '{module}'" in done.stderr


def test_the_base_install_fits_on_a_small_device(python: Path) -> None:
    assert 50 < installed_mb() <= 180


def test_a_node_serves_from_the_base_install(python: Path, bundle: Bundle) -> None:
    inputs, _ = toy_data(200, seed=3)
    features = features_from_node(python, bundle.path, 0, inputs)
    assert_features_agree(features, bundle.features[0][0])


def test_check_runs_from_the_base_install(python: Path, bundle: Bundle) -> None:
    command: list[str | Path] = [python, "-m", "nonn_device", "check", bundle.path, "--student", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rss_mb"] < 90
