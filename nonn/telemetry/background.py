"""Background tasks that end with the block that they belong to, and whose failures are reported at once.

``asyncio.TaskGroup`` is unsuitable: it waits for its tasks at the end, and a failed task cancels the others. Tasks here
run during the block, independently of each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, Self

from nonn.errors import NonnError

__all__ = ["Background"]

_log = logging.getLogger(__name__)


class Background:
    """A set of tasks; an asynchronous context manager that cancels and awaits them at its end.

    Args:
        end: for essential tasks: called as soon as one fails, to end the block, which then raises that error. If None,
            failures are only logged.
    """

    def __init__(self, end: Callable[[], object] | None = None) -> None:
        self._end = end
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        if exc is None and self._end is not None and self._failure is not None:
            raise self._failure

    def start(
        self, coroutine: Coroutine[Any, Any, None], name: str, *, context: Context | None = None
    ) -> asyncio.Task[None]:
        """Runs a coroutine until it ends or the set is closed.

        Args:
            coroutine: of the task.
            name: of the task, for the log.
            context: to run in; None copies the current one.
        """
        task = asyncio.create_task(coroutine, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancels all tasks and waits for them."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        exc = None if task.cancelled() else task.exception()
        if exc is None:
            return
        _log.error("%s failed: %s", task.get_name(), exc, exc_info=None if isinstance(exc, NonnError) else exc)
        if self._end is not None and self._failure is None:
            self._failure = exc
            self._end()
