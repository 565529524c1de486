"""Generates ``nonn/rpc/v1`` from ``proto/``; ``--check`` only reports whether that would change anything.

The messages are moved into a separate descriptor pool (``nonn.rpc.POOL``). Two copies of the Open Inference
Protocol in the default pool end a process with ``duplicate symbol 'inference.ServerLiveRequest'``, and a client of
Triton, MLServer or KServe brings its own copy (triton-inference-server/client #730, SeldonIO/MLServer #1730).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUBS = Path("nonn/rpc/v1")
# Text written by protoc → replacement; each must occur exactly once in a _pb2.py.
TO_PRIVATE_POOL = {
    "from google.protobuf import descriptor_pool as _descriptor_pool\n": "from nonn.rpc import POOL as _POOL\n",
    "_descriptor_pool.Default()": "_POOL",
}


def generate(target: Path) -> dict[str, str]:
    """Runs protoc over every .proto file.

    Args:
        target: folder that protoc may write into.

    Returns:
        Text of each stub by its file name.

    Raises:
        RuntimeError: protoc fails, or writes something that cannot be moved into the private pool.
    """
    # Imported here, so that --help works without the extra.
    from grpc_tools import protoc

    protos = sorted((ROOT / "proto").rglob("*.proto"))
    arguments = [f"-I{ROOT / 'proto'}", f"-I{files('grpc_tools') / '_proto'}"]
    arguments += [f"--{plugin}_out={target}" for plugin in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *arguments, *map(str, protos)]) != 0:
        raise RuntimeError("protoc failed; its message is above")
    stubs = {path.name: path.read_text() for path in sorted((target / STUBS).iterdir())}
    for name in stubs:
        if name.endswith("_pb2.py"):
            stubs[name] = _to_private_pool(name, stubs[name])
    return stubs


def _to_private_pool(name: str, text: str) -> str:
    """Moves the messages of one generated module into the private pool."""
    for old, new in TO_PRIVATE_POOL.items():
        if text.count(old) != 1:
            raise RuntimeError(f"{name}: protoc no longer writes {old!r} once; adapt TO_PRIVATE_POOL")
        text = text.replace(old, new)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Generates or checks the stubs."""
    parser = argparse.ArgumentParser(description="Generate nonn/rpc/v1 from proto/.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if the stubs do not match proto/"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        stubs = generate(Path(folder))
    present = {path.name: path.read_text() for path in (ROOT / STUBS).glob("*_pb2*")}
    drifted = sorted(name for name in stubs.keys() | present.keys() if stubs.get(name) != present.get(name))
    if arguments.check:
        for name in drifted:
            print(f"{STUBS / name} does not match proto/; run: make stubs", file=sys.stderr)
        return 1 if drifted else 0
    for name in drifted:
        if name in stubs:
            (ROOT / STUBS / name).write_text(stubs[name])
        else:
            (ROOT / STUBS / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
