"""The client for programs with an event loop.

::

    async with AsyncClient("127.0.0.1:50051") as client:
        answers = await asyncio.gather(*(client.infer(batch) for batch in batches))

It is ``nonn.client.Client`` in threads, so both have the same behaviour and errors. A thread waits for each call under
way; further calls wait for a thread.

Limits: a cancelled call returns at once, but its request goes on until it is answered or times out. A program with
thousands of calls at a time uses the stubs in ``nonn.rpc.v1`` with ``grpc.aio``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from nonn.answer import Answer
from nonn.client.client import Client, Metadata
from nonn.rpc.wire import Array
from nonn.streams import WindowAnswer

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """A client of one or several aggregators, for coroutines.

    Args:
        address: as for ``Client``.
        timeout_s: of each call.
        concurrency: calls under way at once.
        tls: as for ``Client``.
        token_file: as for ``Client``.
        insecure: as for ``Client``.

    Raises:
        ConfigError, CredentialsError: see ``Client``.
    """

    def __init__(
        self,
        address: str,
        timeout_s: float = 10.0,
        *,
        concurrency: int = 32,
        tls: Path | None = None,
        token_file: Path | None = None,
        insecure: bool = False,
    ) -> None:
        self._client = Client(address, timeout_s, tls=tls, token_file=token_file, insecure=insecure)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections, which ends all calls."""
        self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def infer(self, inputs: Array | str | Path | Sequence[str | Path]) -> Answer:
        """Sends one batch and returns its answer; see ``Client.infer``.

        Args:
            inputs: raw values [B, …], uint8 or float32; or files.

        Raises:
            NonnError: as ``Client.infer``.
        """
        return await self._call(self._client.infer, inputs)

    async def watch(self) -> AsyncGenerator[WindowAnswer, None]:
        """Answers of nodes that sense, from now on; see ``Client.watch``. A thread waits for them.

        Raises:
            NonnError: as ``Client.watch``.
        """
        answers = self._client.watch()
        while True:
            yield await self._call(next, answers)

    async def ready(self) -> bool:
        """Whether the server is ready; false also if it cannot be reached."""
        return await self._call(self._client.ready)

    async def metadata(self) -> Metadata:
        """The model's inputs and outputs, and the state of the cluster.

        Raises:
            NonnError: as ``Client.metadata``.
        """
        return await self._call(self._client.metadata)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
