"""Real processes and sockets for tests of serving; waiting is done on pipes, processes and replies, never on time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node, write_inventory
from nonn.answer import Answer
from nonn.client import Client
from nonn.rpc.endpoint import Endpoint, Model
from nonn.rpc.inference import InferenceServicer
from nonn.rpc.streaming import StreamingServicer

TIMEOUT_S = 60.0  # for what takes a second on an idle machine
LONGEST_PAUSE_S = 0.05  # between two looks at what may have changed

Behaviour = Callable[[bytes, Any], Awaitable[bytes | None]]


@contextlib.contextmanager
def process(
    *arguments: str | Path, stdin: int | None = subprocess.PIPE, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m …``, gone at the end whatever happens; ``prefix`` is a command that runs it."""
    command = [*prefix, sys.executable, "-m", *map(str, arguments)]
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


@contextlib.contextmanager
def running_node(bundle: Path, student: int, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """A real node process and its ready line."""
    with process("nonn_device", "serve", bundle, "--student", str(student), "--watch-stdin", *options) as child:
        assert child.stdout is not None
        yield child, json.loads(child.stdout.readline())


@contextlib.contextmanager
def logged(*arguments: str | Path | int, log: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """A process that serves, its log in a file that can be read while it runs; yields its ready line and the log."""
    command = [sys.executable, "-m", *map(str, arguments), "--watch-stdin"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as child,
    ):
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, log.read_text()
            yield json.loads(line), log
        finally:
            child.kill()


@contextlib.contextmanager
def running_aggregator(bundle: Path, addresses: Sequence[str], folder: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A real aggregator process over nodes at these addresses, and its ready line; its log goes to a file."""
    inventory = folder / "nodes.toml"
    write_inventory(inventory, [Node(id=f"node-{i}", address=a, student=i) for i, a in enumerate(addresses)])
    arguments: list[str | Path] = ["nonn", "serve", bundle, "--inventory", inventory, *options]
    with logged(*arguments, log=folder / "aggregator.log") as (ready, _):
        yield ready


@contextlib.contextmanager
def asking(client: Client, sample: NDArray[Any]) -> Iterator[list[Answer]]:
    """Asks the same thing again and again in a thread of its own; yields the answers so far."""
    answers: list[Answer] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(client.infer(sample))

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def run(*arguments: str | Path, stdin: Any = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    """``python -m …`` to its end."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=stdin)


def run_here(main: Callable[[list[str]], int], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """A command to its end in this process, by the ``main`` of its program: it saves half a second of imports."""
    out, errors = io.StringIO(), io.StringIO()
    command = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code: Any = main(command)
        except SystemExit as exc:  # of argparse
            code = exc.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())


def children_of(pid: int) -> list[int]:
    """Process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def watched(pids: list[int]) -> Iterator[Callable[[], bool]]:
    """Yields a function that waits until all these processes have ended, and says whether they have."""
    descriptors = [os.pidfd_open(pid) for pid in pids]

    def all_ended() -> bool:
        return all(select.select([fd], [], [], TIMEOUT_S)[0] for fd in descriptors)

    try:
        yield all_ended
    finally:
        for fd in descriptors:
            os.close(fd)


def until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> float:
    """Asks until something holds, ever less often; returns the seconds that it took.

    What it waits for happens in another process, which sends no event. The pauses leave the processor to that process.
    """
    start, pause_s = time.monotonic(), 0.001
    while not condition():
        assert time.monotonic() - start < timeout_s, f"still not so after {timeout_s} s"
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return time.monotonic() - start


async def until_async(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """The same in an event loop, which goes on meanwhile."""
    pause_s = 0.001
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class _Generic(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, behaviour: Behaviour | None) -> None:
        self._behaviour = behaviour

    def service(self, details: Any) -> Any:
        async def answer(request: bytes, context: Any) -> AsyncIterator[bytes]:
            if self._behaviour and (reply := await self._behaviour(request, context)) is not None:
                yield reply

        return grpc.unary_stream_rpc_method_handler(answer)


@contextlib.asynccontextmanager
async def fake_node(behaviour: Behaviour | None, port: int = 0) -> AsyncIterator[str]:
    """A server that answers any call with what ``behaviour`` makes of the request's bytes.

    Without it, or if it returns None, a call ends with status OK and no message, which no unary call may.
    """
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Generic(behaviour),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def serving(model: Model) -> AsyncIterator[str]:
    """A model behind the protocol in this process."""
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    endpoint = Endpoint(model)
    for servicer in (InferenceServicer(endpoint), StreamingServicer(endpoint)):
        servicer.add_to(server)
    bound = server.add_insecure_port("127.0.0.1:0")
    async with model:
        await server.start()
        try:
            yield f"127.0.0.1:{bound}"
        finally:
            await server.stop(None)
