"""Notifies systemd that a process is ready and alive: sd_notify(3) over the datagram socket in ``NOTIFY_SOCKET``.

A task of the event loop feeds the watchdog, only after a check has succeeded. A process whose loop hangs, or whose
student no longer runs, does not feed it, and ``WatchdogSec=`` restarts it. Outside systemd nothing happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from nonn.telemetry.background import Background

__all__ = ["Watchdog"]

FEEDS = 3  # per timeout of the watchdog; sd_watchdog_enabled(3) recommends two

Check = Callable[[], Awaitable[object]]

_log = logging.getLogger(__name__)


class Watchdog:
    """Notifications to systemd; an asynchronous context manager around the whole process.

    Args:
        environ: environment with ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        pid, usec = environ.get("WATCHDOG_PID", ""), environ.get("WATCHDOG_USEC", "")
        ours = pid in ("", str(os.getpid()))
        self._interval_s = int(usec) / 1e6 / FEEDS if self._address and ours and usec.isdecimal() else 0.0
        self._check: Check | None = None
        self._tasks = Background()

    async def __aenter__(self) -> Self:
        if self._interval_s:
            self._tasks.start(self._feed(), "watchdog of systemd")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.notify("STOPPING=1")
        await self._tasks.close()

    def ready(self, status: str) -> None:
        """Reports that the process has started, with a status that ``systemctl status`` shows."""
        self.notify(f"READY=1\nSTATUS={status}")

    @contextlib.asynccontextmanager
    async def over(self, check: Check | None, status: str) -> AsyncIterator[None]:
        """Reports ready; during the block, feeds the watchdog only if ``check`` returns without an error."""
        self.ready(status)
        self._check = check
        try:
            yield
        finally:
            self._check = None

    def notify(self, state: str) -> None:
        """Sends one message; a missing listener is only logged."""
        if not self._address:
            return
        # A name that begins with @ is in the abstract namespace of Linux.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), address)
        except OSError as exc:
            _log.debug("%s: cannot send '%s' (%s)", self._address, state, exc)

    async def _feed(self) -> None:
        while True:
            try:
                if self._check is not None:
                    await self._check()
                self.notify("WATCHDOG=1")
            except Exception:
                _log.exception("the check of the watchdog failed; systemd will restart this process")
            await asyncio.sleep(self._interval_s)
