"""A client that is not ours, in an environment that is not ours, drives a live cluster.

NVIDIA's tritonclient brings its own copy of the protocol and needs an older protobuf, so it lives in an environment of
its own, ``.venv-conformance``, which is made at the first run (8 s) and kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonn.bundle import Bundle
from nonn.cluster import LocalCluster
from tests.serving import TIMEOUT_S
from tests.toys import toy_bundle, toy_data
from tests.triton_checks import CHECKS

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".venv-conformance"
REQUIREMENTS = HERE / "triton-requirements.txt"
INSTALL_TIMEOUT_S = 200
STUDENT = 2


@pytest.fixture(scope="module")
def triton_python() -> Any:
    """A Python with tritonclient. Without a way to install it: an error in ``make conformance``, else a skip."""
    ready, python = ENVIRONMENT / ".ready", ENVIRONMENT / "bin/python"
    if not ready.exists() or ready.read_text() != REQUIREMENTS.read_text():
        commands: tuple[list[str | Path], ...] = (
            [sys.executable, "-m", "venv", "--clear", ENVIRONMENT],
            [python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS],
        )
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
            if done.returncode:
                reason = f"{' '.join(map(str, command))}: {done.stderr[-1000:]}"
                if os.environ.get("NONN_CONFORMANCE") == "required":
                    pytest.fail(reason)
                pytest.skip(reason)
        ready.write_text(REQUIREMENTS.read_text())
    return python


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("conformance") / "bundle", num_devices=4)


@pytest.fixture(scope="module")
def cluster(bundle: Bundle) -> Iterator[Any]:
    with LocalCluster(bundle.path, deadline_s=TIMEOUT_S, http_port=0) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=["aggregator", "node"])
def found(
    request: pytest.FixtureRequest,
    triton_python: Any,
    bundle: Bundle,
    cluster: LocalCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """What came of each check."""
    inputs, _ = toy_data(200, seed=3)
    features, _ = bundle.features
    file = tmp_path_factory.mktemp("expected") / "expected.npz"
    rows = slice(0, 16)
    if request.param == "aggregator":
        address, model, output = cluster.address, "nonn", "logits"
        expected = bundle.head.logits({i: f[rows] for i, f in enumerate(features)}).astype(np.float32)
    else:
        address, model, output = cluster.states()[STUDENT].address, f"student-{STUDENT}", "features"
        expected = features[STUDENT][rows]
    np.savez(file, inputs=inputs[rows], expected=expected, output=np.array(output))
    command = [triton_python, "-P", HERE / "triton_checks.py", address, model, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_example_of_the_documentation_runs(triton_python: Any, bundle: Bundle, cluster: LocalCluster) -> None:
    text = (HERE.parent / "docs/protocol.md").read_text()
    example = text.partition("```python\n")[2].partition("```")[0]
    code = example.replace("127.0.0.1:50051", cluster.address)
    assert code != example
    done = subprocess.run([triton_python, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    zeros = {i: np.zeros((1, f.shape[1])) for i, f in enumerate(bundle.features[0])}
    assert done.stdout.startswith(f"{bundle.head.logits(zeros).argmax()} [")
    assert done.stdout.endswith("[[ True  True  True  True]]\n")


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_tritonclient(found: Any, check: Any) -> None:
    assert not found[check], found[check]


def test_tritonclient_over_http(triton_python: Any, bundle: Bundle, cluster: LocalCluster, tmp_path: Path) -> None:
    inputs, (features, _) = toy_data(200, seed=3)[0][:16], bundle.features
    expected = bundle.head.logits({i: f[:16] for i, f in enumerate(features)}).astype(np.float32)
    np.savez(tmp_path / "expected.npz", inputs=inputs, expected=expected, output=np.array("logits"))
    address = cluster.http_address.removeprefix("http://")
    command = [triton_python, "-P", HERE / "triton_http_checks.py", address, tmp_path / "expected.npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
