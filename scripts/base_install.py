"""Creates a virtual environment with only the base install, as on a device, and measures its size on disk.

    python scripts/base_install.py            # creates .venv-base, prints its size as JSON

The environment is kept, and created again when the dependencies or their pins change. It has no pip and no extras, and
runs this checkout. Its size is that of all files in site-packages, including byte code, and of nonn's packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import grpc

from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import Array, new_request, read_tensors

HERE = Path(__file__).resolve().parent.parent
ENVIRONMENT = HERE / ".venv-base"
PACKAGES = ("nonn", "devices/nonn_device", "simulator/nonn_sim")


def base_install(folder: Path = ENVIRONMENT) -> Path:
    """Creates the environment if it is missing, and returns its Python.

    Raises:
        CalledProcessError: pip cannot install it.
    """
    wanted = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = (HERE / "constraints.txt").read_bytes()
    key = hashlib.sha256(json.dumps([wanted, sys.version]).encode() + pins).hexdigest()
    stamp = folder / "made-from"
    if stamp.exists() and stamp.read_text() == key:
        return folder / "bin" / "python"
    python = bare_environment(folder, "-e", ".")
    stamp.write_text(key)
    return python


def bare_environment(folder: Path, *requirement: str) -> Path:
    """Creates an environment with one requirement and its pinned dependencies, without pip; returns its Python.

    Raises:
        CalledProcessError: pip cannot install it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--disable-pip-version-check", "-c", "constraints.txt", *requirement]
    subprocess.run(command, cwd=HERE, check=True)
    return python


def features_from_node(python: Path, bundle: Path, student: int, inputs: Array, timeout_s: float = 60.0) -> Array:
    """Starts a node in an environment, sends it one request, and stops it.

    Args:
        python: interpreter of the environment; the node sees neither this folder nor PYTHONPATH.
        bundle: folder of the bundle.
        student: number of the student.
        inputs: samples [B, *shape].
        timeout_s: time for the answer.

    Returns:
        The student's features [B, d].

    Raises:
        RuntimeError: the node does not start; the message is its output.
        RpcError: the node does not answer.
    """
    command = [str(python), "-I", "-m", "nonn_device", "serve", str(bundle), "--student", str(student), "--watch-stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as node:
        try:
            assert node.stdout is not None
            assert node.stderr is not None
            line = node.stdout.readline()
            if not line:
                raise RuntimeError(node.stderr.read().decode())
            with grpc.insecure_channel(json.loads(line)["address"]) as channel:
                stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
                response = stub.ModelInfer(new_request(f"student-{student}", {"input": inputs}, {}), timeout=timeout_s)
        finally:
            node.kill()
    return read_tensors(response.outputs, response.raw_output_contents)["features"]


def installed_mb(folder: Path = ENVIRONMENT) -> float:
    """Size in megabytes of the environment's packages and of nonn."""
    roots = [*folder.glob("lib/python*/site-packages"), *(HERE / package for package in PACKAGES)]
    files = (path for root in roots for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def main() -> None:
    """Prints the size, and fails above a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=float, default=180.0, help="fail above this (default: %(default)s)")
    args = parser.parse_args()
    base_install()
    size = installed_mb()
    print(json.dumps({"node_install_mb": round(size, 1), "limit_mb": args.limit_mb}))
    sys.exit(size > args.limit_mb)


if __name__ == "__main__":
    main()
