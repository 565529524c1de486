"""Processes of a serving benchmark, and the clients that measure them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc import aio

from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.errors import NonnError, UnreachableError
from nonn.reliability.subsets import mask_of
from nonn.rpc.checksum import model_name
from nonn.rpc.codec import write_request
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import INFER_METHOD, from_status

__all__ = [
    "TIMEOUT_S",
    "Server",
    "aggregator",
    "asking",
    "check_complete",
    "clients",
    "node_request",
    "process",
    "rate",
]

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Server:
    """A process that serves.

    Attributes:
        address: ``host:port``.
        pid: its process id.
    """

    address: str
    pid: int


@contextlib.asynccontextmanager
async def clients(address: str, number: int) -> AsyncIterator[list[Any]]:
    """The call of each of so many clients, each with a separate connection."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(aio.insecure_channel(address, options=own)) for _ in range(number)]
        yield [channel.unary_unary(INFER_METHOD) for channel in channels]


async def rate(calls: Sequence[Any], request: bytes, seconds: float) -> float:
    """Answers per second when each client asks again as soon as it is answered, at least once."""
    start, answers = time.perf_counter(), 0

    async def client(call: Any) -> None:
        nonlocal answers
        while True:
            await call(request, timeout=TIMEOUT_S)
            answers += 1
            if time.perf_counter() - start >= seconds:
                return

    await asyncio.gather(*map(client, calls))
    return answers / (time.perf_counter() - start)


def check_complete(reply: bytes, num_devices: int) -> None:
    """Checks that an answer is from all devices; otherwise the comparison would be unfair.

    Raises:
        NonnError: it is not.
    """
    mask = pb.ModelInferResponse.FromString(reply).parameters["nonn_mask"].int64_param
    if mask != mask_of(range(num_devices)):
        raise NonnError(f"the answer is from the subset {mask:b} of {num_devices} devices; is this machine overloaded?")


def node_request(bundle: Bundle, sample: np.ndarray[Any, Any]) -> bytes:
    """The bytes that the aggregator sends to a node."""
    return model_name("student-0") + write_request("1000", {"input": sample}, {"nonn_bundle": bundle.hash})


@contextlib.contextmanager
def asking(address: str, request: bytes) -> Iterator[Callable[[], bytes]]:
    """A client with a separate connection that repeats one request; bytes in, bytes out."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary(INFER_METHOD)

        def ask() -> bytes:
            try:
                return bytes(call(request, timeout=TIMEOUT_S))
            except grpc.RpcError as exc:
                raise from_status(exc, address) from exc

        yield ask


@contextlib.contextmanager
def aggregator(folder: Path, bundle: Bundle, addresses: Sequence[str], name: str, *options: object) -> Iterator[Server]:
    """An aggregator over nodes; with more nodes than students, they are replicas: node i runs student i modulo N."""
    inventory = folder / f"{name}.toml"
    write_inventory(
        inventory, [Node(id=f"node-{i}", address=a, student=i % bundle.num_devices) for i, a in enumerate(addresses)]
    )
    arguments = ("nonn", "serve", bundle.path, "--inventory", inventory, "--watch-stdin", *options)
    with process(folder, name, *arguments) as server:
        yield server


@contextlib.contextmanager
def process(folder: Path, name: str, *command: object, python: Path | None = None) -> Iterator[Server]:
    """Runs a process that prints a ready line. It ends when its standard input closes."""
    arguments = [str(python), *map(str, command)] if python else [sys.executable, "-m", *map(str, command)]
    log = folder / f"{name}.log"
    with log.open("wb") as stderr:
        child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        if not line:
            raise UnreachableError(f"{name} ended at start: {log.read_text(errors='replace')[-2000:]}")
        yield Server(json.loads(line)["address"], child.pid)
    finally:
        child.stdin.close()
        try:
            child.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()
