"""Protocol between ``nonn fleet`` and an aggregator: lines of JSON over a socket in its state folder.

Any user that may open the socket, by file permissions, is the operator. A request is one line with ``do``; the reply
is one line for each step, the last of which has ``event`` ``done`` or ``error``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nonn.errors
from nonn.documents import to_json
from nonn.errors import ConfigError, NonnError, UnreachableError
from nonn.fleet.rollout import Rollout
from nonn.telemetry.background import Background

__all__ = ["ask", "controlled"]


@contextlib.asynccontextmanager
async def controlled(rollout: Rollout, path: Path) -> AsyncIterator[None]:
    """Listens while the block runs.

    Raises:
        ConfigError: another process listens there.
    """
    async with Background() as tasks:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.start(_serve(rollout, reader, writer), "a request of nonn fleet")

        await asyncio.to_thread(_make_room, path)
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(connected, path)
        finally:
            os.umask(before)
        try:
            yield
        finally:
            server.close()
            await tasks.close()
            await asyncio.to_thread(path.unlink, missing_ok=True)


def _make_room(path: Path) -> None:
    """Removes a socket left by an ended process.

    Raises:
        ConfigError: another process listens there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        raise ConfigError(f"{path}: another aggregator uses this folder; give each one a separate --state")
    path.unlink(missing_ok=True)


async def _serve(rollout: Rollout, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    try:
        with contextlib.suppress(ConnectionError):
            await _answer(rollout, reader, writer)
    finally:
        writer.close()


async def _answer(rollout: Rollout, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request."""

    async def send(message: object) -> None:
        writer.write(json.dumps(to_json(message)).encode() + b"\n")
        await writer.drain()

    try:
        asked = json.loads(await reader.readline())
        do = asked["do"]
        if do == "status":
            await send({"event": "done", **to_json(rollout.status())})
        elif do == "drain":
            await send(await rollout.drain(asked["node"], asked["floor"], undo=asked["undo"], absent=asked["absent"]))
        elif do == "follow":
            await send(await rollout.follow(asked["bundle"]))
        elif do == "roll":
            # A step is finished even if the client disconnects; the next one is then not started.
            steps = rollout.roll(asked["bundle"], asked["floor"], asked["wait_s"])
            async with contextlib.aclosing(steps) as messages:  # type: ignore[type-var]
                async for message in messages:
                    if reader.at_eof():
                        return
                    await send(message)
        else:
            raise ConfigError(f"unknown request '{do}'; do both sides have the same version of nonn?")
    except NonnError as exc:
        await send({"event": "error", "kind": type(exc).__name__, "text": str(exc)})
    except (ValueError, KeyError, TypeError) as exc:
        await send({"event": "error", "kind": "ConfigError", "text": f"invalid request ({type(exc).__name__}: {exc})"})


def ask(path: Path, **request: Any) -> Iterator[dict[str, Any]]:
    """Sends a request to an aggregator and yields its messages; the last one has ``event`` ``done``.

    Raises:
        UnreachableError: no aggregator listens.
        NonnError: the aggregator answers with an error.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except PermissionError:
            raise ConfigError(f"{path}: not allowed; run this as the user of the aggregator, or with sudo") from None
        except OSError as exc:
            raise UnreachableError(
                f"{path}: no aggregator listens ({exc.strerror}); start one with: nonn serve --joins --state "
                f"{path.parent}"
            ) from exc
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile() as lines:
            for line in lines:
                message = json.loads(line)
                if message["event"] == "error":
                    raise getattr(nonn.errors, message["kind"])(message["text"])
                yield message
                if message["event"] == "done":
                    return
    raise UnreachableError(
        f"{path}: the aggregator ended before the request was done; run nonn fleet status when it is back"
    )
