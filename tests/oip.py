"""Somebody else's Open Inference Protocol: their stubs, in the default descriptor pool, and their server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto/nonn/rpc/v1/inference.proto"


def make_stubs(folder: Path) -> Path:
    """Generates ``open_inference_pb2`` and its services into a folder to be put on the module path."""
    folder.mkdir(exist_ok=True)
    proto = folder / "open_inference.proto"
    proto.write_text(PROTO.read_text())
    arguments = ["protoc", f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}", str(proto)]
    assert protoc.main(arguments) == 0
    return folder


@contextlib.contextmanager
def foreign_server(
    stubs: Path, network: Path, model: str, *options: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of ``tests/foreign_server.py`` and its address; gone at the end whatever happens."""
    script = Path(__file__).with_name("foreign_server.py")
    # -P: the folder of the script is not on the path, so nothing of this repository is.
    command = [sys.executable, "-P", str(script), str(stubs), str(network), model, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child, json.loads(child.stdout.readline())["address"]
        finally:
            child.kill()
