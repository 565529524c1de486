"""The version has one source, ``nonn.__version__``, and everything that states a version states that one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nonn_device.cli
import nonn_sim.cli
import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

import nonn
import nonn.cli
from nonn.provenance import code_version
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.inference import InferenceServicer
from nonn.rpc.v1 import inference_pb2 as pb

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("program", "main"),
    [("nonn", nonn.cli.main), ("nonn-device", nonn_device.cli.main), ("nonn-sim", nonn_sim.cli.main)],
)
def test_every_program_prints_its_version(
    program: str, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{program} {nonn.__version__}\n"


def test_the_built_package_has_the_version_of_the_source() -> None:
    assert ProjectMetadata(str(ROOT), PluginManager()).version == nonn.__version__


def test_provenance_begins_with_the_version() -> None:
    assert re.fullmatch(re.escape(nonn.__version__) + r"(\+g[0-9a-f]+(\.dirty)?)?", code_version())


def test_server_metadata_carries_the_version() -> None:
    model: Any = SimpleNamespace(name="m", max_request_bytes=1)  # the call does not reach it
    servicer = InferenceServicer(Endpoint(model))
    metadata = asyncio.run(servicer.ServerMetadata(pb.ServerMetadataRequest(), None))
    assert (metadata.name, metadata.version) == ("nonn", nonn.__version__)


def test_no_other_file_of_the_packages_states_a_version() -> None:
    folders = [ROOT / name for name in ("nonn", "devices/nonn_device", "simulator/nonn_sim")]
    stating = [
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in folder.rglob("*.py")
        if f'"{nonn.__version__}"' in path.read_text()
    ]
    assert stating == ["nonn/__init__.py"]
